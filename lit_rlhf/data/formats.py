"""What a raw row format is, and how the format of a source is recognized.

A new format is one file with one :class:`RowFormat` and a place in ``FORMATS`` of ``loading.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from lit_rlhf.data.records import DialogueRecord, PreferenceRecord, PromptRecord, Reason, RowError, TextRecord

Kind = Literal["preference", "dialogue", "prompt", "text", "sft"]
AnyRecord = PreferenceRecord | PromptRecord | DialogueRecord | TextRecord
GIVEN_BY = {"preference": "preference", "prompt": "prompt", "dialogue": "imitation", "text": "imitation"}


class UnknownFormatError(ValueError):
    """No known format looks like the rows of a source."""


class RowFormat(ABC):
    """How one raw row (a decoded JSON value) becomes a record.

    A subclass says in ``kinds`` what it can give and defines the method of each: :meth:`preference`, :meth:`prompt`,
    and :meth:`imitation` for dialogues and text. It is refused where it is defined if one is missing.

    Attributes:
        name: What the user writes in ``format=``.
        expects: One line for error messages: what a row looks like.
        kinds: The record kinds it gives.
        gives_way_to: Names of formats that are meant where a row has the keys of both.
    """

    name: str
    expects: str
    kinds: frozenset[str]
    gives_way_to: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for kind in sorted(getattr(cls, "kinds", ())):  # an abstract class between may have none yet
            method = GIVEN_BY[kind]
            if getattr(cls, method) is getattr(RowFormat, method):
                raise TypeError(f"`{cls.__name__}.kinds` has {kind!r}, so the class must define `{method}`.")

    @abstractmethod
    def matches(self, row: Any, kind: Kind) -> bool:
        """Whether a row looks like this format, by its keys and types only; a bad row may still look like it."""

    def read(self, row: Any, kind: Kind) -> AnyRecord:
        """The record of a row.

        Raises:
            RowError: The row is not of this format or not usable.
        """
        if not self.matches(row, kind):
            raise RowError(Reason.WRONG_TYPES, f"expected {self.expects}, got {describe(row)}")
        if kind == "preference":
            return self.preference(row)
        if kind == "prompt":
            return self.prompt(row)
        return self.imitation(row)

    def preference(self, row: Any) -> PreferenceRecord:
        """A row as a preference pair."""
        raise TypeError(f"Format `{self.name}` gives no preference pairs.")

    def prompt(self, row: Any) -> PromptRecord:
        """A row as a prompt."""
        raise TypeError(f"Format `{self.name}` gives no prompts.")

    def imitation(self, row: Any) -> DialogueRecord | TextRecord:
        """A row as something to imitate."""
        raise TypeError(f"Format `{self.name}` gives nothing to imitate.")


def describe(row: Any) -> str:
    """A short description of a raw row: its keys, or its type."""
    if isinstance(row, dict):
        keys = ", ".join(f"{str(k)[:30]}: {type(v).__name__}" for k, v in list(row.items())[:8])
        return "{" + keys + ("}" if len(row) <= 8 else ", ...}")
    if isinstance(row, list):
        return f"a list of {len(row)} ({', '.join(sorted({type(x).__name__ for x in row}))})"
    return f"a {type(row).__name__}"


def choose_format(rows: Sequence[Any], kind: Kind, formats: Sequence[RowFormat], *, source: str) -> RowFormat:
    """The one format that the first rows of a source have.

    Args:
        rows: The first decoded rows; those that look like no format are left to validation.
        kind: The kind of record wanted.
        formats: The candidates.
        source: For messages.

    Raises:
        UnknownFormatError: No format fits; names all.
        ValueError: More than one fits, or one that under half of the rows have; names the candidates.
    """
    able = [f for f in formats if _gives(f, kind)]
    votes = Counter(name for row in rows for name in _fitting(row, kind, able))
    if len(votes) == 1:
        (name, count) = next(iter(votes.items()))
        if 2 * count >= len(rows):
            return next(f for f in able if f.name == name)
        raise ValueError(
            f"{source}: only {count} of the first {len(rows)} rows look like `{name}`; "
            f"name the format with `format={name}` if that is right."
        )
    if not votes:
        known = "; ".join(f"`{f.name}`: {f.expects}" for f in able)
        seen = describe(rows[0]) if rows else "no rows"
        raise UnknownFormatError(f"{source}: format not recognized for {kind} data. First row: {seen}. Known: {known}.")
    found = ", ".join(f"`{name}` ({count} of {len(rows)} rows)" for name, count in votes.most_common())
    raise ValueError(f"{source}: the format is ambiguous: {found}. Name one with `format=`.")


def _fitting(row: Any, kind: Kind, formats: Sequence[RowFormat]) -> list[str]:
    fitting = {f.name: f for f in formats if f.matches(row, kind)}
    return [name for name, f in fitting.items() if not f.gives_way_to & fitting.keys()]


def named_format(name: str, kind: Kind, formats: Sequence[RowFormat]) -> RowFormat:
    """The format called ``name``.

    Raises:
        UnknownFormatError: No such format, or it does not give this kind; lists those that do.
    """
    able = {f.name: f for f in formats if _gives(f, kind)}
    if name not in able:
        raise UnknownFormatError(f"`format` ({name!r}) must be one of {', '.join(able)} for {kind} data.")
    return able[name]


def _gives(fmt: RowFormat, kind: Kind) -> bool:
    return kind in fmt.kinds or (kind == "sft" and bool(fmt.kinds & {"dialogue", "text"}))
