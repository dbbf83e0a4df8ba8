"""Errors that the user can mend: which ones they are, and how the command line ends with one of them."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import TracebackType


def for_users(error: BaseException | None) -> BaseException | None:
    """The first error of the chain of causes that is about something the user gave; jsonargparse wraps such errors."""
    while error is not None and not _is_for_users(error):
        error = error.__cause__ or error.__context__
    return error


def _is_for_users(error: BaseException) -> bool:
    """Whether the error was raised on purpose, by this package or by Lightning, about something the user gave."""
    if isinstance(error, FileNotFoundError | FileExistsError | IsADirectoryError):
        return True
    if type(error).__name__ == "MisconfigurationException":
        return True
    if not isinstance(error, ValueError):
        return type(error).__name__ in ("NonFiniteError", "CheckpointError")
    return _raised_in(error.__traceback__, Path(__file__).parent)


def _raised_in(trace: TracebackType | None, folder: Path) -> bool:
    frames = traceback.extract_tb(trace)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(folder)


def fail(message: str) -> None:
    """End with one readable line on stderr and exit code 2.

    Raises:
        SystemExit: Always.
    """
    print("lit-rlhf: " + " ".join(message.split()), file=sys.stderr)  # noqa: T201
    raise SystemExit(2)
