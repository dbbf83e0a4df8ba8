"""Rows without holes: prompt and response joined, padded on the right only.

A rollout keeps prompts left-padded, as generation needs them. For scoring and updating that wastes work: every row of
the batch is as wide as the longest prompt plus the longest response. Here chosen rows are rewritten as
``prompt response pad``, as narrow as the longest row among them. Under causal attention padding on the right cannot
reach a real token, so the model needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lit_rlhf.functional.masking import flat_positions
from lit_rlhf.types import Columns, Rollout


@dataclass(frozen=True, kw_only=True)
class CompactRows(Columns):
    """Right-padded rows and where their response tokens are.

    Attributes:
        input_ids: ``(b, L)`` int64.
        attention_mask: True at real tokens, ``(b, L)`` bool.
        predict_at: Column whose hidden state predicts response token t, ``(b, T)`` int64; 0 outside the mask.
        response_ids: The response tokens, ``(b, T)`` int64.
        response_mask: ``(b, T)`` bool, T the longest response *of these rows*.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predict_at: Tensor
    response_ids: Tensor
    response_mask: Tensor

    @cached_property
    def _places(self) -> Tensor:
        # Once for all models that are asked: a device's host waits to learn how many there are.
        return flat_positions(self.response_mask)

    def predicting(self) -> Tensor:
        """Positions in the flattened ``(b, L)`` that predict the real response tokens, ``(N,)`` int64."""
        rows = self._places // self.response_mask.size(1)
        return rows * self.input_ids.size(1) + self.predict_at.flatten()[self._places]

    def predicted(self) -> Tensor:
        """The real response tokens in the order of :meth:`predicting`, ``(N,)`` int64."""
        return self.response_ids.flatten()[self._places]

    def scatter(self, flat: Tensor, width: int | None = None) -> Tensor:
        """Flat (N,) values of the real response tokens as ``(b, width)``, zero elsewhere; differentiable."""
        out = flat.new_zeros(self.response_mask.shape)
        out = out.masked_scatter(self.response_mask, flat)
        if width is None or width == out.size(1):
            return out
        return torch.nn.functional.pad(out, (0, width - out.size(1)))


def compact_rows(rollout: Rollout, rows: Tensor, pad_token_id: int = 0) -> CompactRows:
    """The rows ``rows`` (int64, 1-D) of a rollout without left padding.

    Args:
        rollout: B responses.
        rows: Which rows, in this order.
        pad_token_id: Id written to the padding columns; it changes no result.

    Returns:
        The compact rows, on the rollout's device.
    """
    rows = rows.to(rollout.input_ids.device)
    ids, mask = rollout.input_ids[rows], rollout.attention_mask[rows]
    lengths = mask.sum(1)
    response_mask = rollout.response_mask[rows]
    response_length = response_mask.sum(1)
    width, longest = torch.stack([lengths.max(), response_length.max().clamp_min(1)]).tolist()
    # A stable sort brings each row's real tokens to the front and keeps their order.
    order = torch.argsort(~mask, dim=1, stable=True)[:, :width]
    keep = torch.arange(width, device=ids.device)[None] < lengths[:, None]
    input_ids = ids.gather(1, order).masked_fill(~keep, pad_token_id)
    response_mask = response_mask[:, :longest]
    first = (lengths - response_length)[:, None] - 1
    predict_at = (first + torch.arange(longest, device=ids.device)).masked_fill(~response_mask, 0)
    return CompactRows(
        input_ids=input_ids,
        attention_mask=keep,
        predict_at=predict_at,
        response_ids=rollout.response_ids[rows][:, :longest],
        response_mask=response_mask,
    )
