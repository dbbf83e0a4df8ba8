"""JSON lines that a kill or a full disk leaves whole: what every writer of them goes through."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Default = Callable[[Any], Any]


def append_rows(path: Path, rows: Iterable[Any]) -> None:
    """Add rows to the end of a file, all or none of them.

    A half line that a kill left at the end stays a line of its own.

    Raises:
        OSError: The file cannot be written; it is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = _lines(rows)
    with path.open("a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
            data = data if file.read(1) == b"\n" else b"\n" + data
        try:
            _write_all(file.fileno(), data)
        except OSError as error:
            os.ftruncate(file.fileno(), size)
            raise OSError(error.errno, error.strerror, str(path)) from error


def write_rows(path: Path, rows: Iterable[Any], *, default: Default | None = None) -> None:
    """Write rows as a file of their own, in one piece: what was at ``path`` is there until all is written.

    Args:
        path: The file.
        rows: What JSON can say.
        default: What to write for anything else (``json.dumps``).

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = _lines(rows, default)
    if path.exists() and not path.is_file():  # a pipe or a device, which nothing must take the place of
        path.write_bytes(data)
        return
    path = path.resolve()
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb", buffering=0) as file:
            _write_all(file.fileno(), data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _lines(rows: Iterable[Any], default: Default | None = None) -> bytes:
    text = "".join(json.dumps(row, ensure_ascii=False, default=default) + "\n" for row in rows)
    return text.encode(errors="backslashreplace")  # a lone surrogate: as JSON escapes it


def _write_all(descriptor: int, data: bytes) -> None:
    """A full disk takes a part first, and says so only when asked again."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
