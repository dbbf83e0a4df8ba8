"""Chat rows: ``{"messages": [{"role": "user", "content": ...}, ...]}``, other keys kept."""

from __future__ import annotations

from typing import Any

from lit_rlhf.data.formats import Kind, RowFormat
from lit_rlhf.data.records import DialogueRecord, PromptRecord, check_turns, read_messages


def looks_like_messages(value: Any) -> bool:
    """Whether ``value`` is a non-empty list of mappings that have a role."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)


class MessagesFormat(RowFormat):
    """One dialogue a row, in the chat layout of most open data sets."""

    name = "messages"
    expects = '{"messages": [{"role": ..., "content": ...}, ...]}'
    kinds = frozenset({"dialogue", "prompt"})

    def matches(self, row: Any, kind: Kind) -> bool:
        """A non-empty list of role-bearing mappings under `messages`."""
        return isinstance(row, dict) and looks_like_messages(row.get("messages"))

    def imitation(self, row: Any) -> DialogueRecord:
        """The whole dialogue."""
        turns = read_messages(row["messages"], name="messages")
        return DialogueRecord(messages=check_turns(turns, ends_with="assistant"), raw=row)

    def prompt(self, row: Any) -> PromptRecord:
        """The dialogue up to its last user turn."""
        turns = read_messages(row["messages"], name="messages")
        if turns[-1].role == "assistant":
            turns = turns[:-1]
        extra = {k: v for k, v in row.items() if k != "messages"}
        return PromptRecord(prompt=check_turns(turns, ends_with="user"), extra=extra, raw=row)
