"""ShareGPT rows: ``{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}``.

Pairs, as LLaMA-Factory writes them, have the last turn twice beside it: ``{"conversations", "chosen", "rejected"}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_rlhf.data.formats import Kind, RowFormat
from lit_rlhf.data.records import (
    DialogueRecord,
    Message,
    PreferenceRecord,
    PromptRecord,
    Reason,
    Role,
    RowError,
    check_turns,
    preference,
    read_number,
)

SPEAKERS: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}


def looks_like_turns(value: Any) -> bool:
    """Whether ``value`` is a non-empty list of mappings that say who speaks."""
    return isinstance(value, list) and bool(value) and all(_is_turn(turn) for turn in value)


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and "from" in value and "value" in value


def _read_turn(turn: Mapping[str, Any], name: str) -> Message:
    role = SPEAKERS.get(str(turn["from"]).lower())
    if role is None:
        raise RowError(Reason.WRONG_TYPES, f"`{name}.from` must be one of {', '.join(SPEAKERS)}, got {turn['from']!r}")
    if not isinstance(turn["value"], str):
        raise RowError(Reason.WRONG_TYPES, f"`{name}.value` must be a string, got {type(turn['value']).__name__}")
    return Message(role, turn["value"].strip())


def _turns(row: Mapping[str, Any]) -> list[Message]:
    turns = [_read_turn(turn, f"conversations[{i}]") for i, turn in enumerate(row["conversations"])]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and turns[0].role != "system":
        turns.insert(0, Message("system", system.strip()))
    return turns


class ShareGPTFormat(RowFormat):
    """The layout of ShareGPT and its many descendants; a `system` column is the first turn."""

    name = "sharegpt"
    expects = '{"conversations": [{"from": "human", "value": ...}, ...]} (pairs: with "chosen" and "rejected" turns)'
    kinds = frozenset({"preference", "dialogue", "prompt"})

    def matches(self, row: Any, kind: Kind) -> bool:
        """Turns under `conversations`; a pair also has two turns."""
        if not isinstance(row, dict) or not looks_like_turns(row.get("conversations")):
            return False
        return kind != "preference" or (_is_turn(row.get("chosen")) and _is_turn(row.get("rejected")))

    def preference(self, row: Any) -> PreferenceRecord:
        """Both last turns after the same dialogue."""
        prompt = _turns(row)
        better, worse = ([*prompt, _read_turn(row[key], key)] for key in ("chosen", "rejected"))
        return preference(better, worse, raw=row, margin=read_number(row.get("margin"), name="margin"))

    def imitation(self, row: Any) -> DialogueRecord:
        """The whole dialogue; of a pair, the one with the better last turn."""
        turns = _turns(row)
        if turns[-1].role == "user" and _is_turn(row.get("chosen")):
            turns.append(_read_turn(row["chosen"], "chosen"))
        return DialogueRecord(messages=check_turns(turns, ends_with="assistant"), raw=row)

    def prompt(self, row: Any) -> PromptRecord:
        """The dialogue up to its last user turn."""
        turns = _turns(row)
        if turns[-1].role == "assistant":
            turns = turns[:-1]
        extra = {k: v for k, v in row.items() if k not in ("conversations", "chosen", "rejected")}
        return PromptRecord(prompt=check_turns(turns, ends_with="user"), extra=extra, raw=row)
