"""Tables as rows: CSV, Parquet and Arrow files, and folders that `datasets` saved.

Rows come as they are asked for: a file larger than memory is read a thousand rows at a time.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_rlhf.data.moss import STRENGTH_KEYS
from lit_rlhf.data.records import Reason, RowError

TABLE_SUFFIXES = (".csv", ".parquet", ".arrow")
_ROWS = 1000


def is_table(path: str) -> bool:
    """Whether :func:`read_table` reads what is at ``path``."""
    return path.endswith(TABLE_SUFFIXES) or is_saved(Path(path))


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved a data set in ``folder`` (``save_to_disk``)."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def refuse_saved_splits(folder: Path) -> None:
    """A folder of several splits is no data: which one is meant?

    Raises:
        ValueError: ``folder`` is one; names them.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if is_saved(path))
        raise ValueError(f"{folder} holds the splits {', '.join(splits)}: name one, such as {folder / splits[0]}.")


def read_table(path: str) -> Iterator[Any]:
    """The rows of a table, in order: dicts, or the error of a row that is broken by itself.

    A CSV file has a line of names first, is UTF-8, and its values are text; the strengths of pairs are read as numbers.

    Raises:
        ValueError: The file as a whole cannot be read.
    """
    try:
        if path.endswith(".csv"):
            yield from _csv(path)
        elif path.endswith(".parquet"):
            yield from _parquet(path)
        elif path.endswith(".arrow"):
            yield from _arrow(path)
        else:
            yield from _saved(path)
    except (ValueError, csv.Error) as error:  # pyarrow's own errors are ValueErrors
        raise ValueError(f"{path}: cannot be read as a table ({_first_line(error)}).") from error


def _csv(path: str) -> Iterator[Any]:
    # Bytes that are not UTF-8 become lone surrogates, which refuse their row and not the file.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:  # noqa: PTH123
        table = _lines(csv.reader(file, strict=True))
        names = next(table, [])
        if len(set(names)) < len(names) or not all(names):
            raise ValueError(f"the first line must name the columns, each with another name: {', '.join(names)[:100]}")
        for cells in table:
            if not cells:
                continue  # a blank line
            if len(cells) != len(names):
                yield RowError(Reason.WRONG_TYPES, f"{len(cells)} cells under {len(names)} names")
            else:
                row = dict(zip(names, cells, strict=True))
                yield row | {key: _number(row[key]) for key in STRENGTH_KEYS if key in row}


def _lines(table: Iterator[list[str]]) -> Iterator[list[str]]:
    """Lines with cells of any length. Python's limit is of the whole process, and stays what it is for others."""
    while True:
        before = csv.field_size_limit(sys.maxsize)
        try:
            line = next(table, None)
        finally:
            csv.field_size_limit(before)
        if line is None:
            return
        yield line


def _number(text: str) -> float | str | None:
    try:
        return float(text) if text.strip() else None
    except ValueError:
        return text


def _parquet(path: str) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS):
            yield from batch.to_pylist()


def _arrow(path: str) -> Iterator[Any]:
    import pyarrow as pa

    with pa.memory_map(path) as file:
        try:
            stream = pa.ipc.open_stream(file)
            batches: Any = iter(stream)
        except pa.ArrowInvalid:  # the other of the two layouts, with an index at the end
            whole = pa.ipc.open_file(file)
            batches = (whole.get_batch(i) for i in range(whole.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                yield from batch.slice(start, _ROWS).to_pylist()


def _saved(path: str) -> Iterator[Any]:
    from datasets import load_from_disk

    rows = load_from_disk(path)
    for start in range(0, len(rows), _ROWS):
        columns = rows[start : start + _ROWS]
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n") or [""])[0][:200] or type(error).__name__
