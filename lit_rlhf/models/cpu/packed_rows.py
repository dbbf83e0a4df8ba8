"""Rows of different lengths in one pass without a token of padding.

What a transformer computes for a token outside attention does not depend on where the token stands. So the tokens of
all rows go through the layers as one long row, and attention alone takes them apart (``attention.py``). Rows that are
sorted by length and cut into micro-batches of 768 tokens are still 14 % padding in PPO's main case
(docs/performance.md). On a GPU, where each call has its price, padding stays.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlhf.models.cpu import last_layer
from lit_rlhf.models.cpu.attention import SDPA_NAME, rows_packed


def hidden_at(trunk: Any, input_ids: Tensor, at: Tensor) -> Tensor | None:
    """Last hidden states of right-padded rows at the positions that are read, ``(N, H)``.

    A row ends at the last position of it that is read: what follows, nobody sees.

    Args:
        trunk: A transformers base model.
        input_ids: ``(B, L)`` int64.
        at: Positions in the flattened ``(B, L)``, ``(N,)`` int64, N >= 1.

    Returns:
        None where it has to be the ordinary pass: for layers not known to be plain.
    """
    width = input_ids.size(1)
    row, column = at // width, at % width
    lengths = torch.zeros(input_ids.size(0), dtype=torch.long).scatter_reduce_(0, row, column + 1, "amax")
    if not _can_take_apart(trunk, int(lengths.max())):
        return None
    kept = torch.arange(width) < lengths[:, None]
    positions = torch.arange(width).expand_as(kept)[kept][None]
    packed_at = (lengths.cumsum(0) - lengths)[row] + column
    view = last_layer.seen_at(trunk, packed_at)
    with rows_packed([length for length in lengths.tolist() if length]):
        # A mask of four dimensions is passed on unseen; without one transformers would make one of all pairs.
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        given = {"input_ids": input_ids[kept][None], "position_ids": positions, "attention_mask": mask}
        hidden = (trunk if view is None else view)(**given, use_cache=False, return_dict=True).last_hidden_state[0]
    packed: Tensor = hidden if view is not None else hidden.index_select(0, packed_at)
    return packed


def _can_take_apart(trunk: Any, longest: int) -> bool:
    """Whether attention is the one that takes rows apart and sees all that comes before, and nothing else is there."""
    config = trunk.config.get_text_config()
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    seen = {"full_attention"} | ({"sliding_attention"} if window is not None and window >= longest else set())
    kinds = set(getattr(config, "layer_types", None) or ["full_attention" if window is None else "sliding_attention"])
    return kinds <= seen and config._attn_implementation == SDPA_NAME and last_layer.plain_trunk(trunk)
