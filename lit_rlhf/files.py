"""Files that are written whole: what was there stays there until all of the new content is on the disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_whole(path: str | Path, data: bytes) -> None:
    """Write ``data`` beside ``path`` and rename it; missing folders are made.

    A pipe or a device, which nothing must take the place of, is written into; a link stays one.

    Raises:
        OSError: The file cannot be written; it is as it was, and nothing is left beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
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


def write_text(path: str | Path, text: str, *, new: bool = False) -> None:
    """Write ``text`` as UTF-8, whole; see :func:`write_whole`.

    Args:
        path: The file.
        text: Its content.
        new: Refuse to take the place of a file.

    Raises:
        FileExistsError: If ``new``, and there is one.
        OSError: The file cannot be written.
    """
    if new and Path(path).exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    write_whole(path, text.encode())


def append_whole(path: str | Path, data: bytes) -> None:
    """Add ``data`` to the end of a file, all of it or nothing; missing folders are made.

    Where a kill has left half a line at the end, a line feed comes first: it stays a line of its own.

    Raises:
        OSError: The file cannot be written; it is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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


def is_torch_file(path: str | Path) -> bool:
    """Whether the file begins as one that ``torch.save`` wrote, or is empty: a zip archive or a pickle."""
    with Path(path).open("rb") as file:
        return file.read(2).startswith((b"PK", b"\x80")) or Path(path).stat().st_size == 0


def _write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``: a full disk takes a part first, and says so only when asked again."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
