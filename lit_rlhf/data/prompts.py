"""Plain prompts: ``{"prompt": string, HH transcript or messages, ...}``; the other keys reach rewards as the record."""

from __future__ import annotations

from typing import Any

from lit_rlhf.data.columns import read_prompt
from lit_rlhf.data.formats import Kind, RowFormat
from lit_rlhf.data.messages import looks_like_messages
from lit_rlhf.data.records import PromptRecord


class PromptsFormat(RowFormat):
    """One prompt a row."""

    name = "prompts"
    expects = '{"prompt": ...} with a string or messages'
    kinds = frozenset({"prompt"})

    def matches(self, row: Any, kind: Kind) -> bool:
        """A `prompt` that is a string or messages."""
        if not isinstance(row, dict):
            return False
        return isinstance(row.get("prompt"), str) or looks_like_messages(row.get("prompt"))

    def prompt(self, row: Any) -> PromptRecord:
        """The prompt; every other key goes to ``extra``."""
        extra = {k: v for k, v in row.items() if k != "prompt"}
        return PromptRecord(prompt=tuple(read_prompt(row["prompt"])), extra=extra, raw=row)
