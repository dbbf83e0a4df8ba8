"""Plain text: ``{"text": ...}`` rows, every token learned."""

from __future__ import annotations

from typing import Any

from lit_rlhf.data.formats import Kind, RowFormat
from lit_rlhf.data.records import Reason, RowError, TextRecord


class TextFormat(RowFormat):
    """One document a row."""

    name = "text"
    expects = '{"text": string}'
    kinds = frozenset({"text"})
    gives_way_to = frozenset({"alpaca"})  # published Alpaca files have the whole layout beside it, as `text`

    def matches(self, row: Any, kind: Kind) -> bool:
        """A string under `text`."""
        return isinstance(row, dict) and isinstance(row.get("text"), str)

    def imitation(self, row: Any) -> TextRecord:
        """The document.

        Raises:
            RowError: Nothing but white space.
        """
        if not row["text"].strip():
            raise RowError(Reason.EMPTY_RESPONSE, "`text` is empty")
        return TextRecord(text=row["text"], raw=row)
