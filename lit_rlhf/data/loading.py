"""Read whatever the user has into records, with a report of every row.

The format of each source is recognized from its first rows or named; what was recognized is in the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import Any, TypeVar, cast

from lit_rlhf.data.alpaca import AlpacaFormat
from lit_rlhf.data.columns import ColumnsFormat
from lit_rlhf.data.formats import AnyRecord, Kind, RowFormat, choose_format, named_format
from lit_rlhf.data.hh import HHFormat
from lit_rlhf.data.memory import DataLike, MemoryRows, in_memory
from lit_rlhf.data.messages import MessagesFormat
from lit_rlhf.data.moss import MossFormat
from lit_rlhf.data.prompts import PromptsFormat
from lit_rlhf.data.records import DialogueRecord, PreferenceRecord, PromptRecord, RowError, TextRecord
from lit_rlhf.data.renaming import check_columns, renamed
from lit_rlhf.data.report import OnBadRow, RowReport
from lit_rlhf.data.sharegpt import ShareGPTFormat
from lit_rlhf.data.sources import SUFFIXES, RawItem, decoded, expand, read_items, values
from lit_rlhf.data.text import TextFormat

FORMATS: tuple[RowFormat, ...] = (
    HHFormat(),
    MossFormat(),
    MessagesFormat(),
    ColumnsFormat(),
    PromptsFormat(),
    ShareGPTFormat(),
    AlpacaFormat(),
    TextFormat(),
)
FIRST_ROWS = 32
_SUBSETS = ("helpful", "harmless")
RecordT = TypeVar("RecordT", bound=AnyRecord)


def read_preferences(
    paths: DataLike, *, format: str | None = None, on_bad_row: OnBadRow = "skip", streaming: bool = False
) -> tuple[list[PreferenceRecord], RowReport]:
    """Preference pairs from files, folders, globs or hub names.

    Args:
        paths: Where the data is; see :mod:`lit_rlhf.data.sources`.
        format: The format of every source; None to recognize it source by source.
        on_bad_row: "skip" counts rows that cannot be used; "error" refuses the data because of one.
        streaming: Read hub splits row by row.

    Returns:
        The records in the order of the data, and the report of every row.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: An unknown, ambiguous or wrong format, an unreadable file, no usable row, or (policy "error") a
            bad row.
    """
    return cast("tuple[list[PreferenceRecord], RowReport]", _read(paths, "preference", format, on_bad_row, streaming))


def read_prompts(
    paths: DataLike, *, format: str | None = None, on_bad_row: OnBadRow = "skip", streaming: bool = False
) -> tuple[list[PromptRecord], RowReport]:
    """Prompts; arguments, returns and errors as :func:`read_preferences`."""
    return cast("tuple[list[PromptRecord], RowReport]", _read(paths, "prompt", format, on_bad_row, streaming))


def read_dialogues(
    paths: DataLike, *, format: str | None = None, on_bad_row: OnBadRow = "skip", streaming: bool = False
) -> tuple[list[DialogueRecord], RowReport]:
    """Dialogues to imitate; arguments, returns and errors as :func:`read_preferences`."""
    return cast("tuple[list[DialogueRecord], RowReport]", _read(paths, "dialogue", format, on_bad_row, streaming))


def read_sft(
    paths: DataLike, *, format: str | None = None, on_bad_row: OnBadRow = "skip", streaming: bool = False
) -> tuple[list[DialogueRecord | TextRecord], RowReport]:
    """Dialogues and plain texts alike; arguments, returns and errors as :func:`read_preferences`."""
    return cast(
        "tuple[list[DialogueRecord | TextRecord], RowReport]", _read(paths, "sft", format, on_bad_row, streaming)
    )


def _read(
    paths: DataLike,
    kind: Kind,
    name: str | None,
    on_bad_row: OnBadRow,
    streaming: bool,  # noqa: FBT001
) -> tuple[list[Any], RowReport]:
    if on_bad_row not in ("skip", "error"):
        raise ValueError(f"`on_bad_row` ({on_bad_row!r}) must be 'skip' or 'error'.")
    records, report = collect(paths, kind, format=name, streaming=streaming)
    report.enforce(on_bad_row)
    return records, report


def collect(
    paths: DataLike,
    kind: Kind,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    streaming: bool = False,
) -> tuple[list[AnyRecord], RowReport]:
    """Records of any kind, with no policy about bad rows applied.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: An unknown, ambiguous or wrong format, or an unreadable file.
    """
    report = RowReport()
    records: list[AnyRecord] = []
    for source in open_sources(paths, kind, format=format, columns=columns, streaming=streaming):
        records += _read_source(source, report)
    report.check()
    return records, report


@dataclass(frozen=True)
class RowReader:
    """How the rows of a source become records; goes to another process as it is.

    Attributes:
        kind: The kind of record.
        format: Name of the rows' format.
        columns: Our names of the columns that have others.
    """

    kind: Kind
    format: str
    columns: Mapping[str, str]

    def record(self, item: RawItem) -> AnyRecord:
        """The record of a row.

        Raises:
            BadRow: It cannot be used.
        """
        row = decoded(item)
        try:
            if row.error is not None:
                raise row.error
            value = renamed(row.value, self.columns)
            record = _format(self.format, self.kind).read(value, self.kind)
        except RowError as error:
            raise BadRow(error, row.value) from error
        record = dataclasses.replace(record, source=row.source, line=row.line)
        if isinstance(record, PreferenceRecord) and record.subset is None:
            return dataclasses.replace(record, subset=subset_of_path(row.source))
        return record


@lru_cache
def _format(name: str, kind: Kind) -> RowFormat:
    return named_format(name, kind, FORMATS)


class BadRow(ValueError):  # noqa: N818
    """A row that cannot be used, with what stands in it."""

    def __init__(self, error: RowError, value: Any) -> None:
        super().__init__(str(error))
        self.error, self.value = error, value


@dataclass
class Source:
    """One source with its rows to come; no reader where there are none."""

    name: str
    reader: RowReader | None
    items: Iterator[RawItem]


def open_sources(
    paths: DataLike,
    kind: Kind,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    streaming: bool = False,
) -> Iterator[Source]:
    """Every source behind ``paths``, its format recognized, its rows not read yet.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: An unknown, ambiguous or wrong format, a wrong name in ``columns``, or an unreadable file.
    """
    names = check_columns(columns)
    if format is not None:
        named_format(format, kind, FORMATS)
    memory = in_memory(paths)
    for given in expand(paths) if memory is None else [memory]:
        yield _open(given, kind, format, names, streaming=streaming)


def _open(
    given: str | MemoryRows, kind: Kind, named: str | None, columns: Mapping[str, str], *, streaming: bool
) -> Source:
    source, items = (
        (repr(given), values(repr(given), given.read(kind)))
        if isinstance(given, MemoryRows)
        else (given, read_items(given, streaming=streaming))
    )
    first = list(islice(items, FIRST_ROWS))
    if not first:
        return Source(source, None, items)
    found = named or _recognized(source, first, kind, columns)
    return Source(source, RowReader(kind, found, columns), chain(first, items))


def _recognized(source: str, first: list[RawItem], kind: Kind, columns: Mapping[str, str]) -> str:
    """Name of the format that the first rows have."""
    rows = [decoded(item) for item in first]
    fine = [row.value for row in rows if row.error is None]
    if not fine:
        way_out = (
            "so that there is no format to recognize."
            if source.endswith(SUFFIXES)
            else f"and its name does not say what it is: files are read that end in {', '.join(SUFFIXES)}."
        )
        raise ValueError(
            f"{source}: none of the first {len(first)} rows could be decoded (row {rows[0].line}: {rows[0].error}), "
            + way_out
        )
    known = []
    for row in fine:
        try:
            known.append(renamed(row, columns))
        except RowError as error:
            missing = error
    if not known:
        raise ValueError(f"{source}: {missing.detail}.")
    return choose_format(known, kind, FORMATS, source=source).name


def _read_source(source: Source, report: RowReport) -> Iterator[AnyRecord]:
    count = report.source(source.name)
    if source.reader is None:
        return
    count.format = source.reader.format
    for item in source.items:
        count.read += 1
        try:
            record = source.reader.record(item)
        except BadRow as bad:
            report.reject(item.source, item.line, bad.error, bad.value)
            continue
        count.accepted += 1
        yield record


def subset_of_path(source: str) -> str | None:
    """The subset that a file's or its folder's name tells ("helpful" or "harmless", as HH-RLHF has it), else None."""
    near = "/".join(source.replace("\\", "/").split("/")[-2:]).lower()
    found = [name for name in _SUBSETS if name in near]
    return found[0] if len(found) == 1 else None
