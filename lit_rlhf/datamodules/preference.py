"""Preference pairs for reward models."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.data.batching import pad_right
from lit_rlhf.data.loading import read_preferences
from lit_rlhf.data.records import PreferenceRecord, RowError
from lit_rlhf.data.report import RowReport
from lit_rlhf.data.template import encode_pair
from lit_rlhf.datamodules.base import Paths, TokenDataModule
from lit_rlhf.types import PreferenceBatch


@dataclass(frozen=True)
class PairRow:
    """Ids of the shared prompt and of both responses with EOS, ``(L,)`` int32 each."""

    prompt: Tensor
    chosen: Tensor
    rejected: Tensor
    margin: float
    record: Mapping[str, Any]


class PreferenceDataModule(TokenDataModule[PreferenceRecord, PairRow]):
    """Pairs in HH-RLHF, MOSS-RLHF or prompt/chosen/rejected layout.

    Yields ``DeviceBatch[PreferenceBatch]``; a row's record is the raw row with ``subset``, ``source``, ``line`` and
    ``group`` (see :meth:`group`) set, ``info`` holds ``global_rows`` (pairs) and ``global_tokens`` (tokens of the
    chosen responses) of the global batch. A pair costs its prompt once and both responses. Arguments: see
    :class:`~lit_rlhf.datamodules.base.TokenDataModule`; a budget of 16,384 tokens where neither ``batch_size`` nor
    ``max_tokens`` is given.
    """

    default_max_tokens = 16_384

    def read_records(self, paths: Paths) -> tuple[list[PreferenceRecord], RowReport]:
        """Preference pairs."""
        return read_preferences(paths, format=self.format, streaming=self.streaming)

    def group(self, record: PreferenceRecord) -> Hashable:
        """The first user turn: HH-RLHF holds pairs at several depths of one dialogue."""
        return next(m.content for m in record.prompt if m.role == "user")

    def encode(self, record: PreferenceRecord, report: RowReport) -> list[PairRow]:
        """One row a pair; old turns go until the longer of the two fits."""
        try:
            pair = encode_pair(self.tokenizer, record, template=self.template, max_length=self.max_length)
        except RowError as error:
            report.withdraw(record, error)
            return []
        report.shorten(record, pair.dropped_turns)
        where = {"source": record.source, "line": record.line, "group": self.group(record)}
        about = {**record.raw, "subset": record.subset, **where}
        return [PairRow(_ids(pair.prompt), _ids(pair.chosen), _ids(pair.rejected), record.margin or 0.0, about)]

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


def _ids(ids: list[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int32)
