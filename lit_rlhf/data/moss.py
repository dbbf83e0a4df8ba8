"""MOSS-RLHF files: JSON lists of dialogues as lists of turns.

Preference rows are ``{"chosen": [turn, ...], "rejected": [turn, ...]}``, the last turn the response; prompt rows are
lists of turns, the last one the human's; SFT rows are lists of turns that start with the human's. Turns may carry
their speaker ("Human:", "<|MOSS|>", ...); where they do not, speakers alternate. The strength labels published with
the cleaned HH-RLHF ("mean preference difference") become the margin. Source: MOSS-RLHF release; Wang et al. 2024
(arXiv 2401.06080) for the strength labels.
"""

from __future__ import annotations

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

_SPEAKERS: dict[str, Role] = {
    "Human:": "user",
    "Assistant:": "assistant",
    "<|Human|>": "user",
    "<|MOSS|>": "assistant",
}
_OTHER: dict[Role, Role] = {"user": "assistant", "assistant": "user"}
STRENGTH_KEYS = ("margin", "mean preference difference")


def read_turns(turns: list[Any], *, last: Role) -> list[Message]:
    """The turns with their speakers, counted back from ``last`` where they are not written out.

    Raises:
        RowError: A turn is not a string, or only some turns name their speaker.
    """
    if not all(isinstance(turn, str) for turn in turns):
        raise RowError(Reason.WRONG_TYPES, "every turn must be a string")
    split = [_split_speaker(turn) for turn in turns]
    named = [role for role, _ in split if role is not None]
    if not named:
        roles = [last if (len(turns) - i) % 2 else _OTHER[last] for i in range(len(turns))]
        return [Message(role, turn.strip()) for role, turn in zip(roles, turns, strict=True)]
    if len(named) == len(turns):
        return [Message(role, text) for role, text in split if role is not None]
    if len(named) == len(turns) - 1 and split[-1][0] is None:  # the response of a prefixed context has no prefix
        return [Message(role or last, text) for role, text in split]
    raise RowError(Reason.WRONG_TYPES, f"only {len(named)} of {len(turns)} turns name their speaker")


def _split_speaker(turn: str) -> tuple[Role | None, str]:
    text = turn.strip()
    for prefix, role in _SPEAKERS.items():
        if text.startswith(prefix):
            return role, text[len(prefix) :].strip()
    return None, text


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(turn, str) for turn in value)


class MossFormat(RowFormat):
    """The three JSON layouts of the MOSS-RLHF release."""

    name = "moss"
    expects = 'a list of turns, or {"chosen": [turn, ...], "rejected": [turn, ...]}'
    kinds = frozenset({"preference", "dialogue", "prompt"})

    def matches(self, row: Any, kind: Kind) -> bool:
        """Lists of strings, bare or (always for preferences) under `chosen` and `rejected`."""
        if isinstance(row, dict):
            return _is_turns(row.get("chosen")) and (kind != "preference" or _is_turns(row.get("rejected")))
        return kind != "preference" and _is_turns(row)

    def preference(self, row: Any) -> PreferenceRecord:
        """Both dialogues; the strength label, where there is one, as margin."""
        key = next((k for k in STRENGTH_KEYS if row.get(k) is not None), STRENGTH_KEYS[0])
        chosen = read_turns(row["chosen"], last="assistant")
        rejected = read_turns(row["rejected"], last="assistant")
        return preference(chosen, rejected, raw=row, margin=read_number(row.get(key), name=key))

    def imitation(self, row: Any) -> DialogueRecord:
        """The bare turns, or those of `chosen`."""
        turns = row["chosen"] if isinstance(row, dict) else row
        messages = check_turns(read_turns(turns, last="assistant"), ends_with="assistant")
        return DialogueRecord(messages=messages, raw=_as_mapping(row))

    def prompt(self, row: Any) -> PromptRecord:
        """The bare turns, or those of `chosen` without the response."""
        turns = row["chosen"][:-1] if isinstance(row, dict) else row
        messages = check_turns(read_turns(turns, last="user"), ends_with="user")
        return PromptRecord(prompt=messages, raw=_as_mapping(row))


def _as_mapping(row: Any) -> dict[str, Any]:
    return row if isinstance(row, dict) else {"turns": row}
