"""From a path, folder, glob or hub name to raw rows, each with its place, each bad one with its reason.

Local: ``.json`` (a list of rows, or one row a line), ``.jsonl``, either with ``.gz``; ``.csv``, ``.parquet``,
``.arrow`` and folders that `datasets` saved (``tables.py``); other folders are searched for these; globs are expanded.
Anything else of the form ``owner/name[/data_dir][@config][:split[slice]]`` is a data set on the hub, read through
`datasets`.
"""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lit_rlhf.data.hub import looks_like_hub_name, read_hub
from lit_rlhf.data.records import Reason, RowError
from lit_rlhf.data.tables import TABLE_SUFFIXES, is_saved, is_table, read_table, refuse_saved_splits

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", *TABLE_SUFFIXES)


@dataclass(frozen=True)
class RawRow:
    """A decoded row, or the reason why there is none.

    Attributes:
        source: File path or hub name as given.
        line: Line of a JSONL file, element of a JSON list, row of a split; from 1.
        value: The JSON value (from the hub: times as ISO 8601, other values that JSON has not as text), so that it can
            be written to files and checkpoints; the undecodable text where ``error`` is set.
        error: Why the row could not be decoded.
    """

    source: str
    line: int
    value: Any
    error: RowError | None = None


class RawLine(NamedTuple):
    """A line of a file as its bytes; see :func:`decoded`."""

    source: str
    line: int
    data: bytes


class RawValue(NamedTuple):
    """A row as an object that nobody has looked at; see :func:`decoded`."""

    source: str
    line: int
    value: Any


RawItem = RawLine | RawValue


def expand(paths: str | Sequence[str]) -> list[str]:
    """Every single source behind ``paths``, in a fixed order.

    Raises:
        FileNotFoundError: A path that is neither a file, a folder, a matching glob nor a hub name.
        ValueError: No path at all, a folder without data files, or a path given twice.
    """
    given = [paths] if isinstance(paths, str) else list(paths)
    try:
        found = [source for path in given for source in _expand_one(str(path))]
    except FileNotFoundError as error:
        if isinstance(paths, str) or any("/" in str(path) or "." in str(path) for path in given):
            raise
        raise FileNotFoundError(
            f'{error} If these are prompts and not paths, give them as [{{"prompt": {given[0]!r:.60}}}, ...].'
        ) from error
    if not found:
        raise ValueError("No data path was given.")
    twice = sorted({source for source in found if found.count(source) > 1})
    if twice:
        raise ValueError(f"Data given twice: {', '.join(twice)}.")
    return found


def _expand_one(path: str) -> list[str]:
    if not path or "\0" in path:
        raise FileNotFoundError(f"Not a data path: {path!r}.")
    local = Path(path).expanduser()
    if local.is_file():
        return [str(local)]
    if local.is_dir():
        refuse_saved_splits(local)
        files = _data_below(local)
        if not files:
            raise ValueError(f"Folder {path} holds no data file ({', '.join(SUFFIXES)}).")
        return files
    matches = sorted(m for m in glob.glob(str(local), recursive=True) if Path(m).is_file())  # noqa: PTH207
    if matches:
        return matches
    if looks_like_hub_name(path) and not path.endswith(SUFFIXES):
        return [path]
    raise FileNotFoundError(
        f"No data at {path}: not a file, a folder, a glob that matches, or a hub name (owner/name[:split])."
    )


def _data_below(folder: Path) -> list[str]:
    """Files and saved data sets in a folder, which may be one."""
    saved = {path.parent for path in folder.rglob("state.json") if is_saved(path.parent)}
    files = {path for path in folder.rglob("*") if path.is_file() and path.name.endswith(SUFFIXES)}
    return sorted(str(path) for path in saved | {path for path in files if path.parent not in saved})


def read_rows(source: str, *, streaming: bool = False) -> Iterator[RawRow]:
    """The rows of one source, in order; arguments and errors as :func:`read_items`."""
    return map(decoded, read_items(source, streaming=streaming))


def read_items(source: str, *, streaming: bool = False) -> Iterator[RawItem]:
    """The rows of one source, in order, each still to be :func:`decoded`: by whichever process has the time.

    Args:
        source: One of :func:`expand`'s results.
        streaming: For hub names: read rows as they arrive instead of downloading the whole split first.

    Raises:
        ValueError: The file as a whole cannot be read (broken gzip or JSON list, cut while it is read), or the hub name
            cannot be loaded.
    """
    if not Path(source).exists():
        yield from values(source, read_hub(source, streaming=streaming))
        return
    try:
        yield from values(source, read_table(source)) if is_table(source) else _read_file(source)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{source}: not a complete gzip file ({error}).") from error
    except OSError as error:
        raise ValueError(f"{source}: cannot be read ({error.strerror or error}).") from error


def values(source: str, rows: Iterable[Any]) -> Iterator[RawValue]:
    """Rows that are objects already; an error among them is that of its row."""
    for number, row in enumerate(rows, start=1):
        yield RawValue(source, number, row)


def decoded(item: RawItem) -> RawRow:
    """The row, or why there is none."""
    if isinstance(item, RawLine):
        return _decode(*item)
    if isinstance(item.value, RowError):
        return RawRow(item.source, item.line, None, item.value)
    return _checked(*item)


def _read_file(source: str) -> Iterator[RawItem]:
    opener: Any = gzip.open if source.endswith(".gz") else open
    plain_json = source.removesuffix(".gz").endswith(".json")
    with opener(source, "rb") as file:
        size = Path(source).stat().st_size
        if plain_json:
            yield from _read_json(source, file.read())
        else:
            yield from _read_lines(source, file)
        # A gzip file knows its end.
        if not source.endswith(".gz") and file.tell() < size:
            raise ValueError(f"{source}: was cut while it was read, after {file.tell()} of {size} bytes.")


def _read_json(source: str, data: bytes) -> Iterator[RawItem]:
    """A JSON list of rows, one JSON object, or (as many published ``.json`` files are) JSON lines."""
    # Bytes that are not UTF-8 become lone surrogates, so that one bad string refuses its row and not the file.
    text = data.decode("utf-8-sig", errors="surrogateescape")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _first_line_is_json(data):
            yield from _read_lines(source, data.split(b"\n"))
            return
        raise ValueError(f"{source}: not JSON ({_one_line(error)}).") from error
    yield from values(source, value if isinstance(value, list) else [value])


def _first_line_is_json(data: bytes) -> bool:
    first = next((line for line in data.split(b"\n") if line.strip()), b"")
    return _decode("", 1, first).error is None


def _read_lines(source: str, lines: Iterable[bytes]) -> Iterator[RawLine]:
    for number, line in enumerate(lines, start=1):
        data = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if data.strip():
            yield RawLine(source, number, data)


def _decode(source: str, line: int, data: bytes) -> RawRow:
    shown = data[:200].decode("utf-8", errors="backslashreplace").strip()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return RawRow(source, line, shown, RowError(Reason.NOT_UTF8, f"byte {error.start} of the line"))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return RawRow(source, line, shown, RowError(Reason.NOT_JSON, _one_line(error)))
    return _checked(source, line, value)


def _checked(source: str, line: int, value: Any) -> RawRow:
    """The row in JSON's values, refused if any string in it cannot be encoded: a tokenizer would fail on it much later.

    A hub's dates and other objects become the text that JSON can say of them: a checkpoint in the middle of an
    iteration holds the rows, and is read back without building objects.
    """
    foreign: list[object] = []

    def plain(x: object) -> str:
        foreign.append(x)
        return str(x.isoformat() if hasattr(x, "isoformat") else x)

    try:
        text = json.dumps(value, ensure_ascii=False, default=plain)
        text.encode("utf-8")
        value = json.loads(text) if foreign else value
    except UnicodeEncodeError:
        return RawRow(source, line, repr(value)[:200], RowError(Reason.NOT_UTF8, "a lone surrogate or a raw byte"))
    except (ValueError, RecursionError, TypeError) as error:
        return RawRow(source, line, repr(type(value)), RowError(Reason.NOT_JSON, _one_line(error)))
    return RawRow(source, line, value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
