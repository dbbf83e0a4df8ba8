"""One forward pass over preference pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.types import PreferenceBatch


@dataclass(frozen=True, kw_only=True)
class PairForward:
    """What a reward model says of pairs.

    Attributes:
        chosen: Scores of the preferred replies, ``(B,)`` fp32.
        rejected: Scores of the others, ``(B,)`` fp32.
        reply_hidden: Hidden states that predict the chosen replies' tokens, ``(N, H)``; empty unless asked for.
        reply_ids: Those tokens, ``(N,)`` int64.
    """

    chosen: Tensor
    rejected: Tensor
    reply_hidden: Tensor
    reply_ids: Tensor


def pair_forward(model: Any, pairs: PreferenceBatch, *, with_reply: bool) -> PairForward:
    """Score both replies of each pair at their last token."""
    chosen_hidden, chosen = _last_scores(model, pairs.chosen_ids, pairs.chosen_mask)
    _, rejected = _last_scores(model, pairs.rejected_ids, pairs.rejected_mask)
    ids = pairs.chosen_ids[:, 1:]
    reply = pairs.chosen_mask[:, 1:] & (
        torch.arange(1, ids.size(1) + 1, device=ids.device)[None] >= pairs.prompt_length[:, None]
    )
    if not with_reply:
        reply = torch.zeros_like(reply)
    return PairForward(
        chosen=chosen, rejected=rejected, reply_hidden=chosen_hidden[:, :-1][reply], reply_ids=ids[reply]
    )


def _last_scores(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    hidden = model.hidden(ids)
    last = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
    return hidden, model.head(last).squeeze(-1)
