"""One forward pass over preference pairs, the prefix that both rows share computed once where the model allows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.data.pairs import can_pack, pack_pairs, packed_lengths
from lit_rlhf.models.causal import unwrap
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


def pair_lengths(model: Any, pairs: PreferenceBatch) -> list[int]:
    """Tokens that :func:`pair_forward` computes for each pair."""
    if can_pack(unwrap(model.trunk)):
        return packed_lengths(pairs).tolist()
    return (pairs.chosen_mask.sum(1) + pairs.rejected_mask.sum(1)).tolist()


def pair_forward(model: Any, pairs: PreferenceBatch, *, with_reply: bool) -> PairForward:
    """Score both replies of each pair at their last token.

    Args:
        model: A ``ScalarModel``.
        pairs: Right-padded pairs, not necessarily as narrow as they could be.
        with_reply: Also give what an LM loss on the chosen replies needs.
    """
    return (_packed if can_pack(unwrap(model.trunk)) else _separate)(model, pairs, with_reply=with_reply)


def _packed(model: Any, pairs: PreferenceBatch, *, with_reply: bool) -> PairForward:
    rows = pack_pairs(pairs)
    trunk = unwrap(model.trunk)
    hidden = trunk(
        input_ids=rows.input_ids,
        position_ids=rows.position_ids,
        attention_mask=rows.mask_for(trunk.config._attn_implementation, trunk.dtype),
        use_cache=False,
    ).last_hidden_state
    reply = rows.loss_mask[:, 1:] & with_reply
    return PairForward(
        chosen=_scores(model, hidden, rows.chosen_last),
        rejected=_scores(model, hidden, rows.rejected_last),
        reply_hidden=hidden[:, :-1][reply],
        reply_ids=rows.input_ids[:, 1:][reply],
    )


def _separate(model: Any, pairs: PreferenceBatch, *, with_reply: bool) -> PairForward:
    chosen_last, rejected_last = pairs.chosen_mask.sum(1) - 1, pairs.rejected_mask.sum(1) - 1
    chosen_ids = pairs.chosen_ids[:, : int(chosen_last.max()) + 1]
    chosen = model.hidden(chosen_ids)
    rejected = model.hidden(pairs.rejected_ids[:, : int(rejected_last.max()) + 1])
    at = torch.arange(1, chosen_ids.size(1), device=chosen_ids.device)[None]
    reply = (at >= pairs.prompt_length[:, None]) & (at <= chosen_last[:, None]) & with_reply
    return PairForward(
        chosen=_scores(model, chosen, chosen_last),
        rejected=_scores(model, rejected, rejected_last),
        reply_hidden=chosen[:, :-1][reply],
        reply_ids=chosen_ids[:, 1:][reply],
    )


def _scores(model: Any, hidden: Tensor, at: Tensor) -> Tensor:
    last = hidden[torch.arange(len(hidden), device=hidden.device), at]
    return model.head(last).squeeze(-1)  # type: ignore[no-any-return]
