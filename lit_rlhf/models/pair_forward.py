"""One forward pass over preference pairs, the prefix that both rows share computed once where the model allows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.functional.masking import flat_positions
from lit_rlhf.models.causal import unwrap
from lit_rlhf.models.packed_pairs import can_pack, pack_pairs, packed_lengths
from lit_rlhf.models.scalar import last_positions
from lit_rlhf.types import PreferenceBatch


@dataclass(frozen=True, kw_only=True)
class PairForward:
    """What a reward model says of pairs.

    Attributes:
        chosen: Scores of the preferred responses, ``(B,)`` fp32.
        rejected: Scores of the others, ``(B,)`` fp32.
        response_hidden: Hidden states that predict the chosen responses' tokens, ``(N, H)``; empty unless asked for.
        response_ids: Those tokens, ``(N,)`` int64.
    """

    chosen: Tensor
    rejected: Tensor
    response_hidden: Tensor
    response_ids: Tensor


def pair_lengths(model: Any, pairs: PreferenceBatch) -> list[int]:
    """Tokens that :func:`pair_forward` computes for each pair."""
    if can_pack(unwrap(model.trunk)):
        return packed_lengths(pairs).tolist()
    return (pairs.chosen_mask.sum(1) + pairs.rejected_mask.sum(1)).tolist()


def pair_forward(model: Any, pairs: PreferenceBatch, *, with_response: bool) -> PairForward:
    """Score both responses of each pair at their last token.

    Args:
        model: A ``ScalarModel``.
        pairs: Right-padded pairs, not necessarily as narrow as they could be.
        with_response: Also give what an LM loss on the chosen responses needs.
    """
    return (_packed if can_pack(unwrap(model.trunk)) else _separate)(model, pairs, with_response=with_response)


def _packed(model: Any, pairs: PreferenceBatch, *, with_response: bool) -> PairForward:
    rows = pack_pairs(pairs)
    trunk = unwrap(model.trunk)
    response = rows.loss_mask[:, 1:] & with_response
    width = rows.input_ids.size(1)
    hidden = model.hidden(
        rows.input_ids,
        rows.mask_for(trunk.config._attn_implementation, trunk.dtype),
        position_ids=rows.position_ids,
        at=torch.cat(
            [
                last_positions(rows.chosen_last + 1, width),
                last_positions(rows.rejected_last + 1, width),
                flat_positions(response, width),
            ]
        ),
    )
    chosen, rejected, response_hidden = hidden.split([len(pairs), len(pairs), int(response.sum())])
    return PairForward(
        chosen=model.head(chosen).squeeze(-1),
        rejected=model.head(rejected).squeeze(-1),
        response_hidden=response_hidden,
        response_ids=rows.input_ids[:, 1:][response],
    )


def _separate(model: Any, pairs: PreferenceBatch, *, with_response: bool) -> PairForward:
    chosen_length, rejected_length = pairs.chosen_mask.sum(1), pairs.rejected_mask.sum(1)
    chosen_ids = pairs.chosen_ids[:, : int(chosen_length.max())]
    rejected_ids = pairs.rejected_ids[:, : int(rejected_length.max())]
    width = chosen_ids.size(1)
    at = torch.arange(1, width, device=chosen_ids.device)[None]
    response = (at >= pairs.prompt_length[:, None]) & (at < chosen_length[:, None]) & with_response
    hidden = model.hidden(
        chosen_ids, at=torch.cat([last_positions(chosen_length, width), flat_positions(response, width)])
    )
    return PairForward(
        chosen=model.head(hidden[: len(pairs)]).squeeze(-1),
        rejected=model(rejected_ids, at=last_positions(rejected_length, rejected_ids.size(1))),
        response_hidden=hidden[len(pairs) :],
        response_ids=chosen_ids[:, 1:][response],
    )
