"""Cutting a rank's rows into micro-batches, as many on each rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_rlhf.data.batching import PassTokens, micro_batches
from lit_rlhf.distributed import all_reduce_max

SUPERVISED_TOKENS = PassTokens(cpu=4096, accelerator=16384)
"""Of SFT and reward models. On a CPU larger passes are no faster, and hold logits of as many tokens at once."""


def length_micro_batches(
    lengths: Sequence[int], max_tokens: int, device: torch.device | str, *, equalize: bool = True
) -> list[Tensor]:
    """Row indices (int64, on ``device``) of each micro-batch, by token budget.

    Args:
        lengths: Tokens of each row.
        max_tokens: Budget of one micro-batch, padding included.
        device: Where the indices, and the count that is exchanged, live.
        equalize: Make as many as the rank that needs most (a collective), so that every rank runs as many backward
            passes.
    """
    parts = micro_batches(lengths, max_tokens)
    if equalize:
        count = int(all_reduce_max(torch.tensor(len(parts), device=device)))
        if count != len(parts):
            parts = micro_batches(lengths, max_tokens, num_parts=count)
    return [torch.tensor(part, dtype=torch.long, device=device) for part in parts]


def row_micro_batches(mask: Tensor, max_tokens: int, *, equalize: bool = True) -> list[Tensor]:
    """:func:`length_micro_batches` of rows with a mask ``(B, L)`` bool of their real tokens."""
    return length_micro_batches(mask.sum(1).tolist(), max_tokens, mask.device, equalize=equalize)
