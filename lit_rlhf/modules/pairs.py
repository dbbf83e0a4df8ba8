"""One forward pass over preference pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.data.pairs import pack_pairs
from lit_rlhf.models.causal import unwrap
from lit_rlhf.models.scalar import ScalarModel
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


def pair_forward(model: ScalarModel, pairs: PreferenceBatch, *, with_reply: bool, shared_prefix: bool) -> PairForward:
    """Score both replies of each pair at their last token.

    Args:
        model: A reward model.
        pairs: B pairs.
        with_reply: Whether to return the chosen replies' hidden states and tokens.
        shared_prefix: Compute what both rows begin with once (:mod:`lit_rlhf.data.pairs`); the scores are those of
            separate rows up to rounding.
    """
    return _packed(model, pairs, with_reply) if shared_prefix else _separate(model, pairs, with_reply)


def can_share_prefix(model: ScalarModel) -> bool:
    """Whether the trunk's attention takes a ready mask (``sdpa`` and ``eager`` do) and counts positions as told."""
    return (
        model.config._attn_implementation in ("sdpa", "eager") and getattr(model.config, "sliding_window", None) is None
    )


def _packed(model: ScalarModel, pairs: PreferenceBatch, with_reply: bool) -> PairForward:  # noqa: FBT001
    packed = pack_pairs(pairs)
    trunk = unwrap(model.trunk)
    hidden = trunk(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        attention_mask=packed.attention_mask,
        use_cache=False,
        return_dict=True,
    ).last_hidden_state
    rows = torch.arange(len(pairs), device=hidden.device)
    reply = packed.loss_mask[:, 1:] if with_reply else torch.zeros_like(packed.loss_mask[:, 1:])
    return PairForward(
        chosen=model.head(hidden[rows, packed.chosen_last]).squeeze(-1),
        rejected=model.head(hidden[rows, packed.rejected_last]).squeeze(-1),
        reply_hidden=hidden[:, :-1][reply],
        reply_ids=packed.input_ids[:, 1:][reply],
    )


def _separate(model: ScalarModel, pairs: PreferenceBatch, with_reply: bool) -> PairForward:  # noqa: FBT001
    chosen_hidden, chosen = _last_scores(model, pairs.chosen_ids, pairs.chosen_mask)
    _, rejected = _last_scores(model, pairs.rejected_ids, pairs.rejected_mask)
    ids = pairs.chosen_ids[:, 1:]
    at = torch.arange(1, ids.size(1) + 1, device=ids.device)[None]
    reply = pairs.chosen_mask[:, 1:] & (at >= pairs.prompt_length[:, None])
    if not with_reply:
        reply = torch.zeros_like(reply)
    return PairForward(
        chosen=chosen, rejected=rejected, reply_hidden=chosen_hidden[:, :-1][reply], reply_ids=ids[reply]
    )


def _last_scores(model: ScalarModel, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    hidden = model.hidden(ids)
    last = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
    return hidden, model.head(last).squeeze(-1)
