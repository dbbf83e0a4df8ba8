"""Supervised fine-tuning data: dialogues whose responses are learned, or plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.data.batching import pad_right
from lit_rlhf.data.encoding import EncodedRow, TextEncoder
from lit_rlhf.datamodules.base import TokenDataModule
from lit_rlhf.datamodules.prompts import EncodedPrompt, PromptLoader
from lit_rlhf.types import TextBatch


@dataclass(frozen=True)
class TextRow:
    """Token ids ``(L,)`` int32, which of them are learned ``(L,)`` bool, and the raw row."""

    ids: Tensor
    learned: Tensor
    raw: Mapping[str, Any]


class SFTDataModule(TokenDataModule[TextRow]):
    """Dialogues (HH `chosen`, MOSS SFT, chat messages, prompt/completion columns) and ``{"text": ...}`` rows.

    Yields ``DeviceBatch[TextBatch]``; its ``info`` holds ``global_rows`` and ``global_tokens`` (learned tokens) of the
    global batch. Arguments: see :class:`~lit_rlhf.datamodules.base.TokenDataModule`; 32 rows a batch where neither
    ``batch_size`` nor ``max_tokens`` is given.
    """

    separator: str | None = None  # of plain text: see `encode_text`

    def encoder(self) -> TextEncoder:
        """Dialogues and texts alike."""
        return TextEncoder(self.template, self.max_length, self.separator)

    def row(self, encoded: EncodedRow) -> TextRow:
        """Ids and learned tokens as tensors."""
        ids, learned = (torch.from_numpy(encoded.columns[name]) for name in ("ids", "learned"))
        return TextRow(ids, learned, encoded.record)

    def length(self, row: TextRow) -> int:
        """Tokens of the row."""
        return len(row.ids)

    def learned_tokens(self, row: TextRow) -> int:
        """Tokens under the loss mask."""
        return int(row.learned.sum())

    def collate(self, rows: Sequence[TextRow]) -> TextBatch:
        """Right-padded block."""
        ids, mask = pad_right([row.ids for row in rows], self.tokenizer.pad_token_id)
        learned, _ = pad_right([row.learned for row in rows], 0)
        return TextBatch(
            input_ids=ids, attention_mask=mask, loss_mask=learned.bool(), records=tuple(row.raw for row in rows)
        )

    def predict_dataloader(self) -> PromptLoader:  # type: ignore[override]
        """The test dialogues without their last response: prompts for the model to answer.

        Raises:
            ValueError: Plain text has no prompts, or there is no data.
        """
        rows = self.rows.get("test") or self.rows.get("val") or []
        prompts = [prompt for row in rows for prompt in _prompt(row)]
        if not prompts:
            raise ValueError("`predict` answers the prompts of `test` dialogues, and there are none.")
        return PromptLoader(prompts, self.batch_size or 32, self.tokenizer.pad_token_id, 1)


def _prompt(row: TextRow) -> list[EncodedPrompt]:
    """What stands before the last learned run of tokens; nothing for rows that are learned from the start."""
    learned = row.learned.tolist()
    start = len(learned) - next((i for i, x in enumerate(reversed(learned)) if not x), len(learned))
    return [EncodedPrompt(ids=row.ids[:start].tolist(), record=row.raw)] if start > 1 else []
