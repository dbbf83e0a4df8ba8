"""Read whatever the user has into records, with a report of every row.

The format of each source is recognized from its first rows or named; what was recognized is in the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, TypeVar, cast

from lit_rlhf.data.columns import ColumnsFormat
from lit_rlhf.data.formats import AnyRecord, Kind, RowFormat, choose_format, named_format
from lit_rlhf.data.hh import HHFormat
from lit_rlhf.data.memory import DataLike, MemoryRows, in_memory
from lit_rlhf.data.messages import MessagesFormat
from lit_rlhf.data.moss import MossFormat
from lit_rlhf.data.prompts import PromptsFormat
from lit_rlhf.data.records import DialogueRecord, PreferenceRecord, PromptRecord, RowError, TextRecord
from lit_rlhf.data.report import OnBadRow, RowReport
from lit_rlhf.data.sources import RawRow, checked_rows, expand, read_rows
from lit_rlhf.data.text import TextFormat

FORMATS: tuple[RowFormat, ...] = (
    HHFormat(),
    MossFormat(),
    MessagesFormat(),
    ColumnsFormat(),
    PromptsFormat(),
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
    paths: DataLike, kind: Kind, *, format: str | None = None, streaming: bool = False
) -> tuple[list[AnyRecord], RowReport]:
    """Records of any kind, with no policy about bad rows applied.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: An unknown, ambiguous or wrong format, or an unreadable file.
    """
    chosen = named_format(format, kind, FORMATS) if format is not None else None
    report = RowReport()
    records: list[AnyRecord] = []
    memory = in_memory(paths)
    for source in expand(paths) if memory is None else [memory]:
        records += _read_source(source, kind, chosen, report, streaming=streaming)
    report.check()
    return records, report


def _read_source(
    given: str | MemoryRows, kind: Kind, named: RowFormat | None, report: RowReport, *, streaming: bool
) -> Iterator[AnyRecord]:
    if isinstance(given, MemoryRows):
        source, rows = repr(given), checked_rows(repr(given), given.read(kind))
    else:
        source, rows = given, read_rows(given, streaming=streaming)
    first = list(islice(rows, FIRST_ROWS))
    decoded = [row.value for row in first if row.error is None]
    if first and not decoded and named is None:
        raise ValueError(
            f"{source}: none of the first {len(first)} rows could be decoded (row {first[0].line}: {first[0].error}), "
            "so that the format is unknown; name one with `format=`."
        )
    if not first:
        report.source(source)
        return
    fmt = named or choose_format(decoded, kind, FORMATS, source=source)
    count = report.source(source)
    count.format = fmt.name
    for row in chain(first, rows):
        count.read += 1
        try:
            record = _read_row(row, fmt, kind)
        except RowError as error:
            report.reject(row.source, row.line, error, row.value)
            continue
        count.accepted += 1
        yield record


def _read_row(row: RawRow, fmt: RowFormat, kind: Kind) -> AnyRecord:
    if row.error is not None:
        raise row.error
    record = dataclasses.replace(fmt.read(row.value, kind), source=row.source, line=row.line)
    if isinstance(record, PreferenceRecord) and record.subset is None:
        return dataclasses.replace(record, subset=subset_of_path(row.source))
    return record


def subset_of_path(source: str) -> str | None:
    """The subset that a file's or its folder's name tells ("helpful" or "harmless", as HH-RLHF has it), else None."""
    near = "/".join(source.replace("\\", "/").split("/")[-2:]).lower()
    found = [name for name in _SUBSETS if name in near]
    return found[0] if len(found) == 1 else None
