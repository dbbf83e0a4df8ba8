"""JSON lines that a kill or a full disk leaves whole: what every writer of them goes through."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lit_rlhf.files import append_whole, write_whole

Default = Callable[[Any], Any]


def append_rows(path: Path, rows: Iterable[Any]) -> None:
    """Add rows to the end of a file, all or none of them.

    A half line that a kill left at the end stays a line of its own.

    Raises:
        OSError: The file cannot be written; it is as it was.
    """
    append_whole(path, _lines(rows))


def write_rows(path: Path, rows: Iterable[Any], *, default: Default | None = None) -> None:
    """Write rows as a file of their own, in one piece: what was at ``path`` is there until all is written.

    Args:
        path: The file.
        rows: What JSON can say.
        default: What to write for anything else (``json.dumps``).

    Raises:
        OSError: The file cannot be written.
    """
    write_whole(path, _lines(rows, default))


def _lines(rows: Iterable[Any], default: Default | None = None) -> bytes:
    text = "".join(json.dumps(row, ensure_ascii=False, default=default) + "\n" for row in rows)
    return text.encode(errors="backslashreplace")  # a lone surrogate: as JSON escapes it
