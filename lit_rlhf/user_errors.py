"""Errors whose message is written for the user: which ones they are, and how the command line ends with one.

Four kinds of errors end a command in one line instead of a traceback:

1. :class:`LitRLHFError` and its subclasses, and Lightning's ``MisconfigurationException``: the class says it.
2. Errors of the operating system about a path or a disk (not found, no permission, no space, ...).
3. A ``ValueError`` that a ``raise`` statement of this package raised, and a ``ValueError``, ``RuntimeError``,
   ``TypeError`` or ``NotImplementedError`` that one of Lightning's did: a flag or a callback that does not fit. One of
   the interpreter's own (``int("x")``, a failed unpacking, ``max([])``), or of another library, may be a slip of the
   program and keeps its traceback.
4. A package that is not installed.
"""

from __future__ import annotations

import dis
import errno
import sys
from pathlib import Path
from types import TracebackType
from typing import NoReturn

PACKAGE = Path(__file__).resolve().parent
_MISUSE = (ValueError, RuntimeError, TypeError, NotImplementedError)
_OF_THE_SYSTEM = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG}


class LitRLHFError(Exception):
    """Base of the errors this library raises on purpose: the message says what is wrong and what to do."""


class UserError(LitRLHFError, ValueError):
    """Something the user gave (an option, a file, a config) cannot be used."""


def message_for_user(error: BaseException | None) -> str | None:
    """The message of the first error in the chain of causes that is written for the user; None if there is none.

    Other libraries wrap such errors (jsonargparse on parsing, Lightning on tearing down), hence the chain.
    """
    while error is not None:
        if _is_for_users(error):
            return _message(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _is_for_users(error: BaseException) -> bool:
    if isinstance(error, LitRLHFError | _lightnings()):
        return True
    if isinstance(error, OSError):
        return isinstance(error, _OF_THE_SYSTEM) or error.errno in _OF_THE_DISK
    if isinstance(error, ImportError):  # a package that is not installed, unless it is a slip in this one
        return not (error.name or "").startswith(PACKAGE.name)
    if isinstance(error, ValueError) and _raised_in(error.__traceback__, PACKAGE):
        return True
    return isinstance(error, _MISUSE) and _raised_in(error.__traceback__, _lightnings_folder())


def _lightnings() -> type[BaseException]:
    """``MisconfigurationException`` where Lightning has been imported; without it no error can be of that class."""
    module = sys.modules.get("lightning.fabric.utilities.exceptions")
    found: type[BaseException] = getattr(module, "MisconfigurationException", LitRLHFError)
    return found


def _lightnings_folder() -> Path | None:
    """Where Lightning is, if it has been imported."""
    file = getattr(sys.modules.get("lightning"), "__file__", None)
    return None if file is None else Path(file).resolve().parent


def _raised_in(trace: TracebackType | None, package: Path | None) -> bool:
    """Whether the innermost frame is the package's and stands at a ``raise`` statement.

    C functions have no frames: without the second condition every ``int(text)`` of the package would count.
    """
    if trace is None or package is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    raises = dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
    return raises and Path(code.co_filename).resolve().is_relative_to(package)


def _message(error: BaseException) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    place = "" if error.filename is None else f": '{error.filename}'"
    return f"{error.strerror}{place}."


def fail(message: str, *, code: int = 2) -> NoReturn:
    """End with one readable line on stderr.

    Args:
        message: Told on one line, whatever line breaks it has.
        code: The exit code.

    Raises:
        SystemExit: Always.
    """
    print("lit-rlhf: " + " ".join(message.split()), file=sys.stderr)  # noqa: T201
    raise SystemExit(code)
