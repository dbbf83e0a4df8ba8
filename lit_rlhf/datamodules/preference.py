"""Preference pairs for reward models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.data.batching import pad_right
from lit_rlhf.data.encoding import EncodedRow, PairEncoder
from lit_rlhf.datamodules.base import TokenDataModule
from lit_rlhf.types import PreferenceBatch


@dataclass(frozen=True)
class PairRow:
    """Ids of the shared prompt and of both responses with EOS, ``(L,)`` int32 each."""

    prompt: Tensor
    chosen: Tensor
    rejected: Tensor
    margin: float
    record: Mapping[str, Any]


class PreferenceDataModule(TokenDataModule[PairRow]):
    """Pairs in HH-RLHF, MOSS-RLHF or prompt/chosen/rejected layout.

    Yields ``DeviceBatch[PreferenceBatch]``; a row's record is the raw row with ``subset``, ``source``, ``line`` and
    ``group`` (the first user turn, which splits keep together) set, ``info`` holds ``global_rows`` (pairs) and
    ``global_tokens`` (tokens of the chosen responses) of the global batch. A pair costs its prompt once and both
    responses. Arguments: see :class:`~lit_rlhf.datamodules.base.TokenDataModule`; a budget of 16,384 tokens where
    neither ``batch_size`` nor ``max_tokens`` is given.
    """

    default_max_tokens = 16_384

    def encoder(self) -> PairEncoder:
        """Preference pairs."""
        return PairEncoder(self.template, self.max_length)

    def row(self, encoded: EncodedRow) -> PairRow:
        """The three pieces as tensors."""
        prompt, chosen, rejected = (torch.from_numpy(encoded.columns[x]) for x in ("prompt", "chosen", "rejected"))
        return PairRow(prompt, chosen, rejected, encoded.columns["margin"], encoded.record)

    def length(self, row: PairRow) -> int:
        """Tokens of the pair, the prompt counted once."""
        return len(row.prompt) + len(row.chosen) + len(row.rejected)

    def learned_tokens(self, row: PairRow) -> int:
        """Tokens of the chosen response: what the reward model's LM loss is over."""
        return len(row.chosen)

    def collate(self, rows: Sequence[PairRow]) -> PreferenceBatch:
        """Two right-padded blocks."""
        pad = self.tokenizer.pad_token_id
        chosen_ids, chosen_mask = pad_right([torch.cat([r.prompt, r.chosen]) for r in rows], pad)
        rejected_ids, rejected_mask = pad_right([torch.cat([r.prompt, r.rejected]) for r in rows], pad)
        return PreferenceBatch(
            chosen_ids=chosen_ids,
            chosen_mask=chosen_mask,
            rejected_ids=rejected_ids,
            rejected_mask=rejected_mask,
            prompt_length=torch.tensor([len(r.prompt) for r in rows]),
            margin=torch.tensor([r.margin for r in rows], dtype=torch.float32),
            records=tuple(r.record for r in rows),
        )
