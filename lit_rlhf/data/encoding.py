"""Rows to token ids, by kind of data: what one process does to some consecutive rows of a source.

Everything here goes to other processes as it is, and none of it needs torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar, Literal

import numpy as np

from lit_rlhf.data.formats import AnyRecord, Kind
from lit_rlhf.data.loading import BadRow, RowReader
from lit_rlhf.data.records import DialogueRecord, PreferenceRecord, PromptRecord, RowError, TextRecord
from lit_rlhf.data.report import Rejected
from lit_rlhf.data.sources import RawItem
from lit_rlhf.data.template import encode_dialogue, encode_pair, encode_text, fit_prompt

Column = Literal["ids", "flags", "number"]
Columns = Mapping[str, Any]


@dataclass(frozen=True)
class EncodedRow:
    """One row of token ids.

    Attributes:
        columns: Token ids as int32, flags as bool, numbers as float; by name.
        record: The raw row, with what else is known of it.
        length: Tokens the row costs.
        learned: Tokens that a language-modelling loss counts.
    """

    columns: Columns
    record: Mapping[str, Any]
    length: int
    learned: int


@dataclass(frozen=True)
class RowEncoder(ABC):
    """How records of one kind become rows of token ids.

    Attributes:
        template: Name of a template, or None for the tokenizer's own.
        max_length: Most tokens of a row.
    """

    kind: ClassVar[Kind]
    columns: ClassVar[Mapping[str, Column]]
    template: str | None
    max_length: int

    @abstractmethod
    def encode(self, tokenizer: Any, record: Any) -> tuple[list[EncodedRow], int]:
        """The rows of a record, and how many old turns were cut for it.

        Raises:
            RowError: It is too long, or unusable as token ids.
        """

    @abstractmethod
    def group(self, record: Any) -> str:
        """What must not be on both sides of a split: the prompt."""


class PairEncoder(RowEncoder):
    """Preference pairs; old turns go until the longer of the two fits."""

    kind = "preference"
    columns: ClassVar[Mapping[str, Column]] = {"prompt": "ids", "chosen": "ids", "rejected": "ids", "margin": "number"}

    def encode(self, tokenizer: Any, record: PreferenceRecord) -> tuple[list[EncodedRow], int]:
        """One row a pair; its record also says `subset`, `source`, `line` and `group`."""
        pair = encode_pair(tokenizer, record, template=self.template, max_length=self.max_length)
        where = {"source": record.source, "line": record.line, "group": self.group(record)}
        about = {**record.raw, "subset": record.subset, **where}
        ids = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        length = sum(map(len, ids.values()))
        columns = {name: _ids(x) for name, x in ids.items()} | {"margin": record.margin or 0.0}
        return [EncodedRow(columns, about, length, len(pair.chosen))], pair.dropped_turns

    def group(self, record: PreferenceRecord) -> str:
        """The first user turn: HH-RLHF holds pairs at several depths of one dialogue."""
        return next(m.content for m in record.prompt if m.role == "user")


@dataclass(frozen=True)
class TextEncoder(RowEncoder):
    """Dialogues whose responses are learned, and plain text.

    Attributes:
        separator: What stands in front of plain text: see :func:`~lit_rlhf.data.template.encode_text`.
    """

    kind = "sft"
    separator: str | None = None
    columns: ClassVar[Mapping[str, Column]] = {"ids": "ids", "learned": "flags"}

    def encode(self, tokenizer: Any, record: DialogueRecord | TextRecord) -> tuple[list[EncodedRow], int]:
        """One row a dialogue; a text gives as many as its length needs."""
        if isinstance(record, TextRecord):
            pieces = encode_text(tokenizer, record.text, max_length=self.max_length, separator=self.separator)
            return [_text_row(ids, [i > 0 for i in range(len(ids))], record.raw) for ids in pieces], 0
        encoded = encode_dialogue(tokenizer, record, template=self.template, max_length=self.max_length)
        return [_text_row(encoded.ids, encoded.learned, record.raw)], encoded.dropped_turns

    def group(self, record: DialogueRecord | TextRecord) -> str:
        """The first user turn, or the text."""
        if isinstance(record, TextRecord):
            return record.text
        return next(m.content for m in record.messages if m.role == "user")


class PromptEncoder(RowEncoder):
    """Prompts; longer ones lose their oldest turns."""

    kind = "prompt"
    columns: ClassVar[Mapping[str, Column]] = {"ids": "ids"}

    def encode(self, tokenizer: Any, record: PromptRecord) -> tuple[list[EncodedRow], int]:
        """One row."""
        encoded = fit_prompt(tokenizer, record.prompt, template=self.template, max_length=self.max_length)
        return [EncodedRow({"ids": _ids(encoded.ids)}, record.raw, len(encoded.ids), 0)], encoded.dropped_turns

    def group(self, record: PromptRecord) -> str:
        """The last turn; prompts are not split."""
        return record.prompt[-1].content


@dataclass
class Chunk:
    """What became of consecutive rows of a source.

    Attributes:
        read: Rows read.
        rejected: Those refused, in order.
        rows: Rows of token ids.
        counts: How many of them each record gave that was read: 0 for one refused when it was encoded.
        groups: 64 bits of each such record's group.
        shortened: Rows that lost old turns.
        dropped_turns: How many.
    """

    read: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    rows: list[EncodedRow] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    shortened: int = 0
    dropped_turns: int = 0


def encode_chunk(items: Iterable[RawItem], reader: RowReader, encoder: RowEncoder, tokenizer: Any) -> Chunk:
    """Read and tokenize consecutive rows of a source."""
    chunk = Chunk()
    for item in items:
        chunk.read += 1
        try:
            record = reader.record(item)
        except BadRow as bad:
            chunk.rejected.append(_rejected(item.source, item.line, bad.error, bad.value))
            continue
        _encode_record(record, encoder, tokenizer, chunk)
    return chunk


def _encode_record(record: AnyRecord, encoder: RowEncoder, tokenizer: Any, chunk: Chunk) -> None:
    chunk.groups.append(int.from_bytes(blake2b(encoder.group(record).encode(), digest_size=8).digest(), "little"))
    try:
        rows, dropped = encoder.encode(tokenizer, record)
    except RowError as error:
        chunk.counts.append(0)
        chunk.rejected.append(_rejected(record.source, record.line, error, dict(record.raw)))
        return
    chunk.counts.append(len(rows))
    chunk.rows += rows
    chunk.shortened += dropped > 0
    chunk.dropped_turns += dropped


def _rejected(source: str, line: int, error: RowError, value: Any) -> Rejected:
    return Rejected(source, line, error.reason, error.detail, value)


def _text_row(ids: list[int], learned: list[bool], raw: Mapping[str, Any]) -> EncodedRow:
    return EncodedRow({"ids": _ids(ids), "learned": np.array(learned, dtype=bool)}, raw, len(ids), sum(learned))


def _ids(ids: list[int]) -> Any:
    return np.array(ids, dtype=np.int32)
