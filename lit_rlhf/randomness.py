"""Random numbers as a function of keys, not of what was drawn before: resumable, the same on any number of ranks."""

from __future__ import annotations

import random
from enum import IntEnum
from typing import Any

import torch


class Stream(IntEnum):
    """What a run draws for; each has numbers of its own from one seed."""

    MINIBATCHES = 1
    PROMPTS = 2
    SAMPLING = 3
    PTX = 4


def generator_for(*keys: int) -> torch.Generator:
    """A CPU generator seeded by integers (seed, stream, iteration, ...), apart from any global random state."""
    seed = 0
    for key in keys:  # splitmix64-like mixing: neighboring keys give unrelated streams
        seed = (seed ^ (key + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        seed ^= seed >> 31
    return torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


def random_states(device: torch.device) -> dict[str, Any]:
    """The global generators of Python and torch, and with CUDA that of ``device``: primitives and tensors."""
    state: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_states(state: dict[str, Any], device: torch.device) -> None:
    """Take back what :func:`random_states` gave."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
