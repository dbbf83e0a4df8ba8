r"""HH-RLHF transcripts: JSONL of ``{"chosen": "\n\nHuman: ...\n\nAssistant: ...", "rejected": ...}``.

Source: Anthropic's HH-RLHF as published. For imitation `chosen` alone is enough; for prompts the last response of
`chosen` is cut off.
"""

from __future__ import annotations

import re
from typing import Any

from lit_rlhf.data.formats import Kind, RowFormat
from lit_rlhf.data.records import (
    DialogueRecord,
    Message,
    PreferenceRecord,
    PromptRecord,
    Reason,
    RowError,
    check_turns,
    preference,
    read_number,
)

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def looks_like_transcript(text: Any) -> bool:
    """Whether ``text`` is a string that starts with a speaker, as HH transcripts do."""
    return isinstance(text, str) and re.match(r"\s*(Human|Assistant):", text) is not None


def parse_transcript(text: str) -> list[Message]:
    """The turns of a transcript.

    Raises:
        RowError: Text before the first speaker.
    """
    before, *rest = _TURN.split(text.lstrip("\n"))
    if before.strip() or not rest:
        raise RowError(Reason.WRONG_TYPES, "a transcript must start with `Human:`")
    turns = zip(rest[::2], rest[1::2], strict=True)
    return [Message("user" if who == "Human" else "assistant", said.strip()) for who, said in turns]


class HHFormat(RowFormat):
    """The published HH-RLHF files."""

    name = "hh"
    expects = 'a transcript in `chosen` (and `rejected`) as "\\n\\nHuman: ...\\n\\nAssistant: ..."'
    kinds = frozenset({"preference", "dialogue", "prompt"})

    def matches(self, row: Any, kind: Kind) -> bool:
        """`chosen` starts with a speaker; a pair also has `rejected` as a string."""
        if not isinstance(row, dict) or not looks_like_transcript(row.get("chosen")):
            return False
        return kind != "preference" or isinstance(row.get("rejected"), str)

    def preference(self, row: Any) -> PreferenceRecord:
        """Both transcripts, which must agree up to the last response."""
        margin = read_number(row.get("margin"), name="margin")
        return preference(parse_transcript(row["chosen"]), parse_transcript(row["rejected"]), raw=row, margin=margin)

    def imitation(self, row: Any) -> DialogueRecord:
        """The chosen transcript."""
        return DialogueRecord(messages=check_turns(parse_transcript(row["chosen"]), ends_with="assistant"), raw=row)

    def prompt(self, row: Any) -> PromptRecord:
        """The chosen transcript without its last response (which may be empty: only the prompt is used)."""
        turns = parse_transcript(row["chosen"])
        if turns[-1].role == "assistant":
            turns = turns[:-1]
        extra = {k: v for k, v in row.items() if k not in ("chosen", "rejected")}
        return PromptRecord(prompt=check_turns(turns, ends_with="user"), extra=extra, raw=row)
