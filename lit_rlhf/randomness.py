"""Random numbers as a function of keys, not of what was drawn before: resumable, the same on any number of ranks."""

from __future__ import annotations

from enum import IntEnum

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
