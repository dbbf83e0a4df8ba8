"""Cutting a rank's rows into micro-batches, as many on each rank."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rlhf.data.batching import micro_batches
from lit_rlhf.distributed import all_reduce_max


def row_micro_batches(mask: Tensor, max_tokens: int, *, equalize: bool = True) -> list[Tensor]:
    """Row indices of each micro-batch, by token budget.

    Args:
        mask: Real tokens, ``(B, L)`` bool.
        max_tokens: Budget of one micro-batch, padding included.
        equalize: Make as many as the rank that needs most (a collective), so that every rank runs as many backward
            passes.
    """
    lengths = mask.sum(1).tolist()
    parts = micro_batches(lengths, max_tokens)
    if equalize:
        count = int(all_reduce_max(torch.tensor(len(parts), device=mask.device)))
        if count != len(parts):
            parts = micro_batches(lengths, max_tokens, num_parts=count)
    return [torch.tensor(part, dtype=torch.long, device=mask.device) for part in parts]
