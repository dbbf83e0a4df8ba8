"""Typed records: what every file format is turned into, and the one way a row can be refused.

A format (``hh.py``, ``moss.py``, ...) reads one raw row and returns one of the records below, or raises
:class:`RowError` with a :class:`Reason`. Everything after this point (templates, batching) knows records only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Any, Literal

Role = Literal["user", "assistant", "system"]
ROLES: tuple[Role, ...] = ("user", "assistant", "system")


class Reason(str, Enum):
    """Why a row was refused; the value is what the tables print."""

    NOT_UTF8 = "not UTF-8"
    NOT_JSON = "not JSON"
    WRONG_TYPES = "wrong types"
    EMPTY_PROMPT = "empty prompt"
    EMPTY_RESPONSE = "empty response"
    EMPTY_TURN = "empty turn"
    EQUAL_RESPONSES = "equal responses"
    DIFFERING_PROMPTS = "differing prompts"
    REPEATED_ROLE = "repeated role"
    STARTS_WITH_ASSISTANT = "starts with an assistant turn"
    ENDS_WITH_HUMAN = "ends with a human turn"
    ENDS_WITH_ASSISTANT = "ends with an assistant turn"
    TOO_LONG = "too long"


class RowError(ValueError):
    """One row cannot be used.

    Args:
        reason: The class of the problem.
        detail: What exactly is wrong, for the rejects file.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.value}: {detail}" if detail else reason.value)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue; ``content`` is stripped of the white space around it."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True)
class Located:
    """Where a record comes from.

    Attributes:
        source: File path or hub name as given.
        line: Line of a JSONL file, element of a JSON list, row of a table or hub split; counted from 1.
        raw: The raw row, for rewards that are programs and for reports.
    """

    source: str = ""
    line: int = 0
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class PreferenceRecord(Located):
    """A prompt and two responses, the first preferred.

    Attributes:
        prompt: Turns, oldest first, the last one the user's.
        chosen: The preferred response.
        rejected: The other response.
        margin: How much better `chosen` is, where the data says so (its sign is kept: negative means the labelers'
            models disagree with the human), else None.
        subset: "helpful", "harmless" or whatever the data names; None where unknown.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float | None = None
    subset: str | None = None


@dataclass(frozen=True, kw_only=True)
class PromptRecord(Located):
    """A prompt to answer; ``extra`` holds the row's other columns (reference answers, tags, ...)."""

    prompt: tuple[Message, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DialogueRecord(Located):
    """A dialogue whose assistant turns are to be imitated; the last turn is the assistant's."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class TextRecord(Located):
    """Plain text, every token of which is learned (pretraining, ptx)."""

    text: str


def check_turns(messages: Sequence[Message], *, ends_with: Literal["user", "assistant"]) -> tuple[Message, ...]:
    """The turns, if they form a dialogue: system turns first, then user and assistant in turn.

    Raises:
        RowError: Empty prompt, an empty turn or response, a repeated role, or the wrong speaker at either end.
    """
    body = [m for m in messages if m.role != "system"]
    if any(m.role == "system" for m in messages[len(messages) - len(body) :]):
        raise RowError(Reason.REPEATED_ROLE, "a system turn after the dialogue began")
    if not body:
        raise RowError(Reason.EMPTY_PROMPT, "no turns")
    _check_order(body, ends_with)
    for i, message in enumerate(body, start=1):
        if not message.content:
            raise RowError(_empty_reason(body, i, ends_with), f"turn {i} of {len(body)} has no text")
    return tuple(m for m in messages if m.content)


def _check_order(body: Sequence[Message], ends_with: Role) -> None:
    for i, (before, after) in enumerate(pairwise(body), start=1):
        if before.role == after.role:
            raise RowError(Reason.REPEATED_ROLE, f"turns {i} and {i + 1} are both by the {before.role}")
    if body[-1].role != ends_with:
        raise RowError(Reason.ENDS_WITH_HUMAN if ends_with == "assistant" else Reason.ENDS_WITH_ASSISTANT)
    if body[0].role != "user":
        raise RowError(Reason.STARTS_WITH_ASSISTANT)


def _empty_reason(body: Sequence[Message], turn: int, ends_with: Role) -> Reason:
    if turn == len(body):
        return Reason.EMPTY_RESPONSE if ends_with == "assistant" else Reason.EMPTY_PROMPT
    return Reason.EMPTY_PROMPT if turn == len(body) - 1 and ends_with == "assistant" else Reason.EMPTY_TURN


def preference(
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    *,
    raw: Mapping[str, Any],
    margin: float | None = None,
) -> PreferenceRecord:
    """A record from two whole dialogues that share all but the last turn.

    Raises:
        RowError: A dialogue is malformed, the prompts differ, or the responses are equal.
    """
    better = check_turns(chosen, ends_with="assistant")
    worse = check_turns(rejected, ends_with="assistant")
    if better[:-1] != worse[:-1]:
        raise RowError(Reason.DIFFERING_PROMPTS, "the turns before the last response are not the same")
    if better[-1] == worse[-1]:
        raise RowError(Reason.EQUAL_RESPONSES)
    return PreferenceRecord(
        prompt=better[:-1],
        chosen=better[-1].content,
        rejected=worse[-1].content,
        margin=margin,
        subset=_subset(raw),
        raw=raw,
    )


def _subset(raw: Mapping[str, Any]) -> str | None:
    value = raw.get("subset")
    return value if isinstance(value, str) and value else None


def read_messages(value: Any, *, name: str) -> list[Message]:
    """Turns from a list of ``{"role": ..., "content": ...}``.

    Raises:
        RowError: ``value`` is not such a list, or a role is unknown.
    """
    if not isinstance(value, list):
        raise RowError(Reason.WRONG_TYPES, f"`{name}` must be a list of messages, got {type(value).__name__}")
    return [_read_message(item, f"{name}[{i}]") for i, item in enumerate(value)]


def _read_message(item: Any, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise RowError(Reason.WRONG_TYPES, f"`{name}` must have role and content, got {type(item).__name__}")
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise RowError(Reason.WRONG_TYPES, f"`{name}.role` must be one of {', '.join(ROLES)}, got {role!r}")
    if not isinstance(content, str):
        raise RowError(Reason.WRONG_TYPES, f"`{name}.content` must be a string, got {type(content).__name__}")
    return Message(role, content.strip())


def read_number(value: Any, *, name: str) -> float | None:
    """``value`` as a finite float, None for None.

    Raises:
        RowError: Not a number, or not finite.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowError(Reason.WRONG_TYPES, f"`{name}` must be a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not -1e30 < number < 1e30:  # NaN fails both
        raise RowError(Reason.WRONG_TYPES, f"`{name}` must be a finite number")
    return number
