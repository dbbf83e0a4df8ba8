"""Sequences of tokens as numbers that can be counted: one int64 hash per n-gram, one per opening.

Conventions: ``ids (B, T)`` int64, ``mask (B, T)`` bool, True first. Equal sequences have equal hashes, on every rank;
different ones collide about as often as random 64-bit numbers do.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Odd multiplier of a polynomial hash modulo 2^64 (Knuth's MMIX constant): int64 products wrap, which is what we want.
_MULTIPLIER = 6364136223846793005


def ngram_hashes(ids: Tensor, mask: Tensor, order: int) -> Tensor:
    """Every window of ``order`` kept tokens, ``(N,)``; none where no response is that long."""
    if ids.size(1) < order:
        return ids.new_zeros(0)
    windows, whole = ids.unfold(1, order, 1), mask.unfold(1, order, 1).all(-1)
    return _hashed(windows)[whole]


def prefix_hashes(ids: Tensor, mask: Tensor, length: int) -> Tensor:
    """The first ``length`` tokens of each response, ``(B,)``; a shorter response is its own prefix."""
    head = ids[:, :length].masked_fill(~mask[:, :length], -1)
    return _hashed(torch.nn.functional.pad(head, (0, length - head.size(1)), value=-1))


def _hashed(windows: Tensor) -> Tensor:
    """Polynomial hash of the last dimension of int64 ``windows``."""
    value = torch.zeros_like(windows[..., 0])
    for k in range(windows.size(-1)):
        value = (value + windows[..., k] + 1) * _MULTIPLIER + (k + 1)
        value = value ^ (value >> 29)  # low bits of a product alone never see high bits; mix them down
    return value
