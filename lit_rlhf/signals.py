"""Signals that ask a training run to end: noted when they come, acted on where the run can be saved.

A signal interrupts the program between any two lines: inside an optimizer's step, where a checkpoint would hold half
an update, or inside a collective, where another one would never end. So the handler notes the first signal and does
nothing else; ``StopOnSignal`` looks at the note between batches. Nothing heavy is imported here: the handlers are in
place before anything that takes seconds to load.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2", "SIGTERM") if hasattr(signal, name))


class Interrupted(Exception):  # noqa: N818  nothing went wrong
    """A rollout was given up because a signal asks the run to end."""


@dataclass
class _Noted:
    """What the handler and the program say to each other.

    Attributes:
        number: The first signal that came; 0 for none.
        rollout: Whether a rollout may be given up now.
        ending: Whether the run is past its last save.
        save_seconds: How long the last checkpoint took.
    """

    number: int = 0
    rollout: bool = False
    ending: bool = False
    save_seconds: float | None = None


_noted = _Noted()


@contextmanager
def listening(*, for_good: bool = False) -> Iterator[None]:
    """Note the signals instead of dying of them, starting with none; the old handlers are back at the end.

    Args:
        for_good: Ignore the signals afterwards: the process ends now, and one that has done all its work must not die
            of a signal while Python shuts down.
    """
    vars(_noted).update(vars(_Noted()))
    before = listen()
    try:
        yield
    finally:
        # Ignored in earnest: Python puts the default in the place of a handler of its own before it is gone.
        restore(dict.fromkeys(before, signal.SIG_IGN) if for_good else before)


def listen() -> dict[int, Any]:
    """Put the handlers in place, again where another library has put its own; those that were there.

    A launcher may have blocked the signals for the time until here (`env --block-signal`): they come now. Nothing
    happens outside the main thread, which alone can set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.signal(number, _note) for number in SIGNALS}
    let_through()
    return before


def let_through() -> None:
    """Signals that a launcher has blocked come from now on."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def restore(before: dict[int, Any]) -> None:
    """Put back the handlers that :func:`listen` gave."""
    for number, handler in before.items():
        signal.signal(number, handler)


def received() -> int:
    """Number of the first signal that came; 0 if none has."""
    return _noted.number


def rollout_may_end(*, allowed: bool) -> None:
    """Whether :func:`check` raises: only while a rollout for training is under way, and somebody acts on it."""
    _noted.rollout = allowed


def check() -> None:
    """Call it often in a rollout: it costs nothing.

    Raises:
        Interrupted: If a signal came and the rollout may be given up.
    """
    if _noted.number and _noted.rollout:
        raise Interrupted


def note_save(seconds: float) -> None:
    """Remember how long writing a checkpoint took, for who signals twice."""
    _noted.save_seconds = seconds


def ending() -> None:
    """Say that the run has saved and ends: further signals ask for nothing more."""
    _noted.ending = True


def tell(line: str) -> None:
    """One line on stderr, past Python's buffers: a handler may run while one of them is being written."""
    os.write(2, f"lit-rlhf: {line}\n".encode())


def _note(number: int, _: FrameType | None) -> None:
    if not _noted.number:
        _noted.number = number
    elif not _noted.ending and _first_process():
        names = f"{signal.Signals(number).name} after {signal.Signals(_noted.number).name}"
        took = "" if _noted.save_seconds is None else f", which took {_noted.save_seconds:.1f} s the last time"
        tell(f"{names}: the run ends after the update under way and a save{took}.")


def _first_process() -> bool:
    """Whether this is the process that speaks for the job, by what launchers put into the environment."""
    ranks = [os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ]
    return ranks[:1] in ([], ["0"])
