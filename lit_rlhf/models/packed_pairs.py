"""Preference pairs with the prompt that both responses share computed once.

A pair is one row ``prefix | chosen tail | rejected tail``: the prefix is the longest common prefix of both rows, the
rejected tail sees the prefix but not the chosen tail, and its positions go on from the prefix. Scores and gradients are
those of two separate rows.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlhf.models.cpu import SDPA_NAMES
from lit_rlhf.types import Columns, PreferenceBatch


@dataclass(frozen=True, kw_only=True)
class PackedPairs(Columns):
    """Packed preference pairs; B pairs, L packed tokens.

    Attributes:
        input_ids: Prefix, chosen tail, rejected tail, then padding, ``(B, L)`` int64.
        position_ids: Position of each token in its own row, ``(B, L)`` int64.
        attention_mask: True where query i sees key j, ``(B, 1, L, L)`` bool. A Hugging Face trunk with ``sdpa``
            attention takes it as it is; see :meth:`mask_for`.
        chosen_last: Index of the chosen row's last token, ``(B,)`` int64.
        rejected_last: The same for the rejected row, ``(B,)`` int64.
        loss_mask: True at the chosen response's tokens (LM targets; each is predicted from the index before it),
            ``(B, L)`` bool.
        margin: Required score difference, ``(B,)`` fp32.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    chosen_last: Tensor
    rejected_last: Tensor
    loss_mask: Tensor
    margin: Tensor

    def mask_for(self, attention: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """The mask in the form an attention implementation takes.

        Transformers passes a 4-D mask on unseen: ``sdpa`` reads bool, ``eager`` ADDS it to the scores.

        Args:
            attention: ``config._attn_implementation`` of the trunk.
            dtype: Floating-point type of the trunk, for ``eager``.

        Raises:
            ValueError: The implementation takes no mask of its own (flash attention); see :func:`can_pack`.
        """
        if attention in SDPA_NAMES:
            return self.attention_mask
        if attention == "eager":
            mask = torch.zeros(self.attention_mask.shape, dtype=dtype, device=self.attention_mask.device)
            return mask.masked_fill_(~self.attention_mask, torch.finfo(dtype).min)
        raise ValueError(f"Packed pairs need `sdpa` or `eager` attention, not `{attention}`.")


def can_pack(trunk: nn.Module) -> bool:
    """Whether a Hugging Face trunk can score packed rows: it takes positions and a mask, and hides no key itself.

    Sliding windows and recurrent layers see the row's own order, which packing changes; flash attention takes no mask.
    """
    config: Any = trunk.config
    given = set(inspect.signature(trunk.forward).parameters)
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return (
        {"position_ids", "attention_mask"} <= given
        and layers == {"full_attention"}
        and window is None
        and getattr(config, "_attn_implementation", None) in (*SDPA_NAMES, "eager")
    )


def common_prefix(batch: PreferenceBatch) -> Tensor:
    """Length of the common prefix of both rows of each pair; each keeps a token of its own. ``(B,)`` int64."""
    width = min(batch.chosen_ids.size(1), batch.rejected_ids.size(1))
    same = batch.chosen_ids[:, :width] == batch.rejected_ids[:, :width]
    shared = same.long().cumprod(1).sum(1)
    shorter = torch.minimum(batch.chosen_mask.sum(1), batch.rejected_mask.sum(1))
    return torch.minimum(shared, shorter - 1)


def packed_lengths(batch: PreferenceBatch) -> Tensor:
    """Tokens of each pair once packed, ``(B,)`` int64."""
    return batch.chosen_mask.sum(1) + batch.rejected_mask.sum(1) - common_prefix(batch)


def pack_pairs(batch: PreferenceBatch) -> PackedPairs:
    """The batch as packed rows.

    Args:
        batch: Right-padded pairs; a pair's two rows may differ from their first token on.

    Returns:
        Rows as wide as the longest packed pair.
    """
    prefix = common_prefix(batch)
    chosen_length, rejected_length = batch.chosen_mask.sum(1), batch.rejected_mask.sum(1)
    total = chosen_length + rejected_length - prefix
    at = torch.arange(int(total.max()), device=prefix.device).expand(len(batch), -1)
    # columns of (B, 1), to compare with (B, L)
    cut, shared, end = chosen_length[:, None], prefix[:, None], total[:, None]
    in_rejected = at >= cut
    own = torch.where(in_rejected, at - cut + shared, at)
    chosen = batch.chosen_ids.gather(1, own.clamp(max=batch.chosen_ids.size(1) - 1))
    rejected = batch.rejected_ids.gather(1, own.clamp(max=batch.rejected_ids.size(1) - 1))
    causal = at[0][:, None] >= at[0][None, :]
    hidden = in_rejected[:, :, None] & ((at >= shared) & ~in_rejected)[:, None, :]
    return PackedPairs(
        input_ids=torch.where(in_rejected, rejected, chosen).masked_fill(at >= end, 0),
        position_ids=own.masked_fill(at >= end, 0),
        attention_mask=(causal & ~hidden)[:, None],
        chosen_last=chosen_length - 1,
        rejected_last=total - 1,
        loss_mask=(at >= batch.prompt_length[:, None]) & ~in_rejected,
        margin=batch.margin,
    )
