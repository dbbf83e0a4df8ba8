"""Alpaca rows: ``{"instruction": ..., "input": ..., "output": ...}``, `input` often empty.

The user's turn is the instruction, a blank line and the input; the sentence that Alpaca put round them ("Below is an
instruction ...") is a template, and templates are the tokenizer's business. `system` and `history` (a list of
[question, answer]) are turns before, where a row has them.
"""

from __future__ import annotations

from typing import Any

from lit_rlhf.data.formats import Kind, RowFormat
from lit_rlhf.data.records import DialogueRecord, Message, PromptRecord, Reason, RowError, check_turns


def _prompt(row: dict[str, Any]) -> list[Message]:
    parts = [row["instruction"].strip(), _text(row, "input")]
    turns = [*_history(row), Message("user", "\n\n".join(part for part in parts if part))]
    system = _text(row, "system")
    return [Message("system", system), *turns] if system else turns


def _history(row: dict[str, Any]) -> list[Message]:
    turns = []
    for exchange in row.get("history") or []:
        if not (isinstance(exchange, list) and len(exchange) == 2 and all(isinstance(x, str) for x in exchange)):
            raise RowError(Reason.WRONG_TYPES, "`history` must be a list of [question, answer]")
        turns += [Message("user", exchange[0].strip()), Message("assistant", exchange[1].strip())]
    return turns


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise RowError(Reason.WRONG_TYPES, f"`{key}` must be a string, got {type(value).__name__}")
    return (value or "").strip()


class AlpacaFormat(RowFormat):
    """One instruction a row."""

    name = "alpaca"
    expects = '{"instruction": string, "input": string, "output": string}'
    kinds = frozenset({"dialogue", "prompt"})

    def matches(self, row: Any, kind: Kind) -> bool:
        """An `instruction` as a string, and an `output` where one is imitated."""
        if not isinstance(row, dict) or not isinstance(row.get("instruction"), str) or "prompt" in row:
            return False
        return kind == "prompt" or isinstance(row.get("output"), str)

    def imitation(self, row: Any) -> DialogueRecord:
        """Instruction and output."""
        turns = [*_prompt(row), Message("assistant", row["output"].strip())]
        return DialogueRecord(messages=check_turns(turns, ends_with="assistant"), raw=row)

    def prompt(self, row: Any) -> PromptRecord:
        """The instruction with its input; every other column goes to ``extra``."""
        extra = {k: v for k, v in row.items() if k not in ("instruction", "input")}
        return PromptRecord(prompt=check_turns(_prompt(row), ends_with="user"), extra=extra, raw=row)
