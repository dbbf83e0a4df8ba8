"""Column rows: a `prompt` beside its responses, each as a string or as messages.

Preferences are ``{"prompt", "chosen", "rejected"}``, or ``{"chosen", "rejected"}`` as whole message lists; imitation
rows are ``{"prompt", R}`` with R one of `completion`, `response`, `chosen`. A string prompt may be an HH transcript
that ends in "Assistant:"; any other string is one user turn.
"""

from __future__ import annotations

from typing import Any

from lit_rlhf.data.formats import Kind, RowFormat
from lit_rlhf.data.hh import looks_like_transcript, parse_transcript
from lit_rlhf.data.messages import looks_like_messages
from lit_rlhf.data.records import (
    DialogueRecord,
    Message,
    PreferenceRecord,
    Reason,
    RowError,
    check_turns,
    preference,
    read_messages,
    read_number,
)

REPLY_KEYS = ("completion", "response", "chosen")


def read_prompt(value: Any, *, name: str = "prompt") -> list[Message]:
    """The turns of a prompt given as a string, a transcript or messages; a bare final "Assistant:" is dropped.

    Raises:
        RowError: Wrong types, or an empty prompt.
    """
    if isinstance(value, str):
        turns = parse_transcript(value) if looks_like_transcript(value) else [Message("user", value.strip())]
    else:
        turns = read_messages(value, name=name)
    if turns and turns[-1] == Message("assistant", ""):
        turns = turns[:-1]
    return list(check_turns(turns, ends_with="user"))


def _read_response(value: Any, *, name: str) -> list[Message]:
    """The turns that follow the prompt: one assistant turn for a string."""
    return [Message("assistant", value.strip())] if isinstance(value, str) else read_messages(value, name=name)


def _is_response(value: Any) -> bool:
    return isinstance(value, str) or looks_like_messages(value)


def _dialogue(row: dict[str, Any], key: str) -> list[Message]:
    prompt = read_prompt(row["prompt"]) if "prompt" in row else []
    response = _read_response(row[key], name=key)
    # TRL's explicit-prompt rows repeat the prompt inside each response in some published sets
    return response if prompt and response[: len(prompt)] == prompt else prompt + response


class ColumnsFormat(RowFormat):
    """Prompt and responses in columns of their own."""

    name = "columns"
    expects = '{"prompt": ..., "chosen": ..., "rejected": ...} (imitation: {"prompt": ..., "completion": ...})'
    kinds = frozenset({"preference", "dialogue"})

    def matches(self, row: Any, kind: Kind) -> bool:
        """A prompt with its responses, or two message lists."""
        if not isinstance(row, dict):
            return False
        has_prompt = _is_response(row.get("prompt"))
        if kind != "preference":
            return has_prompt and any(_is_response(row.get(key)) for key in REPLY_KEYS)
        responses = (row.get("chosen"), row.get("rejected"))
        return all(_is_response(r) if has_prompt else looks_like_messages(r) for r in responses)

    def preference(self, row: Any) -> PreferenceRecord:
        """Both responses after the same prompt; a `margin` column is kept."""
        margin = read_number(row.get("margin"), name="margin")
        return preference(_dialogue(row, "chosen"), _dialogue(row, "rejected"), raw=row, margin=margin)

    def imitation(self, row: Any) -> DialogueRecord:
        """The prompt and its one response column."""
        keys = [key for key in REPLY_KEYS if _is_response(row.get(key))]
        if len(keys) > 1:
            raise RowError(Reason.WRONG_TYPES, f"more than one response column: {', '.join(keys)}")
        return DialogueRecord(messages=check_turns(_dialogue(row, keys[0]), ends_with="assistant"), raw=row)
