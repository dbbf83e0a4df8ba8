"""What serves a CPU alone, chosen here: on any other device none of these functions changes or runs anything.

- :func:`tune`: a model's linear layers and attention, called where a model meets its device (at the start of a
  ``BaseModule``'s run, in ``FrozenModel.on``).
- :func:`hidden_at`: rows of different lengths in one pass without padding.
- :func:`seen_at`: the last layer at the positions that are read.
- :func:`products`: which library multiplies, for a checkpoint to tell.
- :func:`attention_dtype`: of the keys and values that a decode loop keeps.
- :func:`release_freed_memory`: between the phases of an iteration.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlhf.models.cpu import kernels, last_layer, memory, packed_rows
from lit_rlhf.models.cpu.attention import SDPA_NAMES

__all__ = ["SDPA_NAMES", "attention_dtype", "hidden_at", "products", "release_freed_memory", "seen_at", "tune"]


def _is_cpu(device: torch.device | str) -> bool:
    return torch.device(device).type == "cpu"


def tune(model: Any, device: torch.device | str) -> None:
    """Give a model the products and attention of this folder for a CPU, in place, or take them back for another device.

    Parameters, their names and what a checkpoint holds stay. Calling it again changes nothing.

    Args:
        model: A module with transformers models in it, or one of them.
        device: Where it is going to run.
    """
    (kernels.install if _is_cpu(device) else kernels.remove)(model)


def hidden_at(trunk: Any, input_ids: Tensor, at: Tensor) -> Tensor | None:
    """Last hidden states of right-padded rows at the positions that are read, without padding; see ``packed_rows.py``.

    Args:
        trunk: A transformers base model.
        input_ids: ``(B, L)`` int64.
        at: Positions in the flattened ``(B, L)``, ``(N,)`` int64, N >= 1.

    Returns:
        ``(N, H)``; None where it has to be the ordinary pass: on other devices, and for layers not known to be plain.
    """
    return packed_rows.hidden_at(trunk, input_ids, at) if _is_cpu(input_ids.device) else None


def seen_at(model: Any, at: Tensor) -> Any | None:
    """A view of a model that computes its last layer at some positions only; see ``last_layer.py``.

    Args:
        model: A transformers base model or causal LM, which itself is not changed.
        at: Positions in the flattened ``(B, L)`` input, ``(N,)`` int64, N >= 1, on the model's device.

    Returns:
        A module with the model's weights whose last hidden states are ``(1, N, H)``; None where it has to be the whole
        model: on other devices, and for layers not known to be plain.
    """
    return last_layer.seen_at(model, at) if _is_cpu(at.device) else None


def products(device: torch.device | str) -> str | None:
    """What multiplies fp32 matrices: `onednn` or `torch`; None on other devices, where there is no choice."""
    return ("onednn" if kernels.prefers_onednn() else "torch") if _is_cpu(device) else None


def attention_dtype(states: Tensor) -> torch.dtype:
    """The dtype that attention runs in on these keys or values: fp32 under autocast on a CPU, else their own."""
    if _is_cpu(states.device) and torch.is_autocast_enabled("cpu"):
        return torch.float32
    return states.dtype


def release_freed_memory(device: torch.device | str, *, pass_tokens: int) -> bool:
    """Give freed memory back to the system before a phase that needs large buffers; see ``memory.py``.

    Args:
        device: Where the run is.
        pass_tokens: Tokens of its forward passes. Large ones leave holes large enough.

    Returns:
        Whether anything was given back.
    """
    return _is_cpu(device) and pass_tokens <= memory.SMALL_PASS and memory.trim()
