"""Processes that know of each other: the failing one has the last word, and nobody waits for one that is gone."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import lightning as L
import torch.distributed as dist

from lit_rlhf import signals
from lit_rlhf.callbacks.hooks import RolloutCallback
from lit_rlhf.user_errors import message_for_user

_FAILED = "failed"
_LEFT = b"left"


class Heartbeat(RolloutCallback):
    """Ends the job when one of its processes fails, dies or freezes, with one line that says which and why.

    A thread in each process says once a second that it is there, in the key-value store that the processes met at.
    Rank 0 listens to all, the others to rank 0.

    * A process raises an error: the others end without a word, so that the error is the last thing the job says. Left
      alone, they would bury it under tracebacks of their broken connections.
    * A process is killed: that is said, with its rank.
    * A process is frozen, or its machine is (not heard of for ``silence`` seconds): likewise.

    A process whose main thread alone hangs goes on beating. The others wait for it in a collective, and fail after the
    process group's own time limit (`timeout` of the strategy); the line then says where each process was.

    With a single process, or where the processes met otherwise than by ``MASTER_ADDR`` and ``MASTER_PORT``, it does
    nothing.

    Args:
        silence: Seconds without a sign of life after which a process counts as lost.
        every: Seconds between two signs of life.

    Raises:
        ValueError: If ``every`` is not positive, or ``silence`` is under three times ``every``.
    """

    def __init__(self, silence: float = 120.0, every: float = 1.0) -> None:
        if not every > 0:
            raise ValueError(f"`every` ({every}) must be positive.")
        if silence < 3 * every:
            raise ValueError(f"`silence` ({silence}) must be at least three times `every` ({every}).")
        self.silence, self.every = silence, every
        self._pulse: _Pulse | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin to beat."""
        met = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if met and "MASTER_PORT" in os.environ and self._pulse is None:
            # The launcher's watch over its children would have the last word, and says less.
            logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.WARNING)
            children = getattr(trainer.strategy.launcher, "procs", [])
            self._pulse = _Pulse(list(children), silence=self.silence, every=self.every)
            self._pulse.start()

    def on_phase(self, trainer: L.Trainer, pl_module: L.LightningModule, phase: str) -> None:
        """Where a rollout is."""
        self._at(phase)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """An update."""
        self._at("update")

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """A validation batch."""
        self._at("validation")

    def _at(self, place: str) -> None:
        if self._pulse is not None:
            self._pulse.place = (place, time.monotonic())

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The orderly end: the others need not miss this process."""
        if self._pulse is not None:
            self._pulse.leave()
        self._pulse = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tell the others, or end in silence where it is another process that failed."""
        self.setup(trainer, pl_module, "")  # the data may have failed before the first callback's turn
        if self._pulse is None:
            return
        if not isinstance(exception, Exception):  # a signal, Ctrl-C
            self._pulse.leave()
        elif is_lost_connection(exception):
            self._pulse.end_without(exception)
        else:
            self._pulse.fail(exception)


class _Pulse(threading.Thread):
    """The thread, and what the process says to the others and knows of them.

    Attributes:
        place: What the main thread is doing, and since when.
    """

    def __init__(self, children: list[Any], *, silence: float, every: float) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.place = ("start-up", time.monotonic())
        self._children, self._silence, self._every = children, silence, every
        self._rank = dist.get_rank()
        others = range(1, dist.get_world_size()) if self._rank == 0 else [0]
        self._heard = {rank: (b"", time.monotonic()) for rank in others}
        self._over, self._speaking = threading.Event(), threading.Lock()
        # A connection of its own: the main thread may hold the other one for as long as it waits for somebody.
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        options: dict[str, Any] = {"wait_for_workers": False, "timeout": timedelta(seconds=30)}
        store = dist.TCPStore(host, port, is_master=False, **options)  # type: ignore[attr-defined]
        self._store = dist.PrefixStore("lit_rlhf/heartbeat", store)  # type: ignore[attr-defined]

    def run(self) -> None:
        """Beat and listen until :meth:`leave`, or until the store is gone with the process it was in."""
        beats, before = 0, time.monotonic()
        with suppress(RuntimeError):
            while not self._over.wait(self._every):
                beats, now = beats + 1, time.monotonic()
                place, since = self.place
                self._store.set(str(self._rank), f"{beats} {place} {now - since:.0f}")
                # After a sleep of its own (a suspended job) nobody can have been heard.
                self._listen(anew=now - before > 3 * self._every)
                before = now
                told = self._failure()
                if told is not None and not told.startswith(f"{self._rank} "):
                    self._end_behind(told)
                lost = self._dead_child() or self._frozen()
                if lost and told is None:
                    self._end(lost, code=1)

    def leave(self) -> None:
        """Stop, and let the others know that it is in order."""
        self._over.set()
        with suppress(RuntimeError):
            self._store.set(str(self._rank), _LEFT.decode())

    def fail(self, error: Exception) -> None:
        """Say that this process fails of ``error``; what all fail of alike, only one of them says."""
        code = 1 if message_for_user(error) is None else 2
        own = f"{self._rank} {code} {type(error).__name__}: {error}"
        told = self._publish(own)
        if told != own and told.partition(" ")[2] == own.partition(" ")[2]:
            self._end_behind(told)
        time.sleep(2 * self._every)  # for the others to see it: then they wait for this process to speak and end

    def end_without(self, error: Exception) -> None:
        """End after a broken connection, or a wait that was too long, with a word if no other process has one."""
        late = "imed out" in str(error) or "imeout" in str(error)
        # Rank 0 knows more than the others and is the first to speak.
        self._wait(lambda: self._failure() or self._dead_child(), (3 if self._rank == 0 else 6) * self._every)
        told = self._failure()
        if told is not None:
            self._end_behind(told)
        lost = [rank for rank, (_, heard) in self._heard.items() if time.monotonic() - heard > 2 * self._every]
        named = f"rank {', '.join(map(str, lost))}" if lost else "another process"
        gone = f"{named} ended without a word: was it killed, for want of memory perhaps?"
        waited = f"the processes did not meet within the strategy's `timeout`: {self._places()}."
        self._end(self._dead_child() or (waited if late else gone), code=1)

    # ---------------------------------------------------------------- the others

    def _listen(self, *, anew: bool) -> None:
        for rank, (last, heard) in self._heard.items():
            said = self._store.get(str(rank)) if self._store.check([str(rank)]) else b""
            self._heard[rank] = (said, heard if said == last and not anew else time.monotonic())

    def _frozen(self) -> str:
        ages = {rank: time.monotonic() - heard for rank, (last, heard) in self._heard.items() if last != _LEFT}
        silent = ", ".join(f"rank {rank} for {age:.0f} s" for rank, age in ages.items() if age > self._silence)
        return f"nothing was heard of {silent}: it is frozen, or its machine is gone." if silent else ""

    def _dead_child(self) -> str:
        """A process that this one started and that ended badly."""
        for number, child in enumerate(self._children, 1):
            code = child.poll()
            if code:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                return f"the process with local rank {number} {how}."
        return ""

    def _places(self) -> str:
        told = [f"rank {self._rank} waited in `{self.place[0]}`"]
        for rank, (last, _) in self._heard.items():
            _, place, seconds = [*last.decode().split(), "?", "?", "?"][:3]
            told.append(f"rank {rank} has been in `{place}` for {seconds} s")
        return ", ".join(told)

    def _failure(self) -> str | None:
        """Rank, exit code and words of the process that failed first."""
        with suppress(RuntimeError):
            return str(self._store.get(_FAILED).decode()) if self._store.check([_FAILED]) else None
        return None

    def _publish(self, text: str) -> str:
        """Make ``text`` what the job fails of, unless there is something already; what it is."""
        with suppress(RuntimeError):
            return str(self._store.compare_set(_FAILED, "", text[:4000]).decode())
        return text if self._rank <= 1 else ""  # the store is gone with rank 0: one of the others speaks

    # ---------------------------------------------------------------- the end

    def _wait(self, condition: Callable[[], Any], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not condition():
            time.sleep(self._every / 4)

    def _end_behind(self, told: str) -> None:
        """End when the process that failed has spoken and is gone; the exit code is its own."""
        self._wait(self._dead_child, 5 * self._every)
        self._end("", code=int(told.split()[1]))

    def _end(self, line: str, *, code: int) -> None:
        self._speaking.acquire()  # for good: else the main thread could end the process before this one has spoken
        own = f"{self._rank} 1 {line}"[:4000]
        if line and self._publish(own) == own:
            signals.tell(line)
        elif line:
            self._wait(self._dead_child, 5 * self._every)  # another process has spoken first, or is about to
        sys.stdout.flush()
        for child in self._children:
            with suppress(OSError):
                child.kill()
        # Not by an exception: the main thread may be in a collective that nothing else can end.
        os._exit(code)


def is_lost_connection(error: BaseException | None) -> bool:
    """Whether an error says that another process is gone or late, and nothing of this one."""
    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and _LOST.search(str(error))):
            return True
        error = error.__cause__ or error.__context__
    return False


_LOST = re.compile(
    r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|Timed out waiting|timeout caused"
    r"|Another process failed"  # `run_together`
)
