"""Where a run is: phase, speed, the four monitors, time left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from lit_rlhf.callbacks.hooks import RolloutCallback

# What is shown, and the logged name it is read from: the module's, or a monitor's where the module does not log it.
MONITORS = {
    "score": "rollout/score",
    "kl": "rollout/kl",
    "ppl": "rollout/perplexity",
    "length": "rollout/response_length",
}


_TRAINING = "training"  # the phase of a stage that names none
_STALE = 5.0  # seconds after which the facts of a plain line are read anew
_LONG = 10.0  # seconds of a first step that are worth a line


class RLHFProgressBar(RolloutCallback, ProgressBar):
    """One live line on a terminal, a plain line per epoch and per minute elsewhere: no log spam.

    Shows stage, phase (``rollout``, ``scoring``, ``update``, ``validation``, ``training``), epoch and step, time left,
    tokens per second and the four monitors of the paper: score, KL, perplexity, length. Metrics that the module logs
    with ``prog_bar=True`` follow, so it serves supervised stages as well. The phase comes from
    :func:`~lit_rlhf.callbacks.hooks.emit_phase`. Off a terminal it also says when models load, when the first rollout,
    scoring and update begin, and what the first step took where that is long.

    Tokens per second count whole steps: response tokens of an iteration over the time from its rollout to the end of
    its last update; for supervised stages the learned tokens (``update/tokens``) so far over the time so far.

    Args:
        refresh_rate: Training batches between two updates of the live line.
        every_n_epochs: Epochs between two plain lines when the output is not a terminal.
        every_n_seconds: Seconds between two plain lines inside an epoch, also while a long rollout runs; None for none.
        plain: True for plain lines, False for the live line, None to ask the terminal.

    Raises:
        ValueError: If a rate is under 1.
    """

    def __init__(
        self,
        refresh_rate: int = 1,
        every_n_epochs: int = 1,
        plain: bool | None = None,  # noqa: FBT001
        every_n_seconds: float | None = 60.0,
    ) -> None:
        if refresh_rate < 1 or every_n_epochs < 1:
            raise ValueError(f"`refresh_rate` ({refresh_rate}) and `every_n_epochs` ({every_n_epochs}) must be >= 1.")
        if every_n_seconds is not None and not every_n_seconds > 0:
            raise ValueError(f"`every_n_seconds` ({every_n_seconds}) must be positive.")
        super().__init__()
        self.refresh_rate = refresh_rate
        self.every_n_epochs = every_n_epochs
        self.every_n_seconds = every_n_seconds
        self.plain = plain
        self._enabled = True
        self._phase = "setup"
        self._progress: Progress | None = None
        self._began = (0, 0.0)
        self._phase_began = self._loading_began = 0.0
        self._announced: set[str] = set()
        self._left_out = 0
        self._speed = _Speed()
        self._ticker: _Ticker | None = None
        self._latest = (0.0, "")

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without breaking the live line."""
        console = self._progress.console if self._progress else _console()
        console.print(*args, soft_wrap=True, highlight=False, markup=False)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Say that models are about to be loaded."""
        super().setup(trainer, pl_module, stage)
        self._loading_began = time.monotonic()
        if stage == "fit":
            self._announce("fit: loading models and data")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The models are there."""
        self._announce(f"fit: loaded in {_clock(time.monotonic() - self._loading_began)}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the live line, or begin the plain ones."""
        self._began = (trainer.global_step, time.monotonic())
        self._enter(_TRAINING)
        self._latest = (time.monotonic(), self.line(trainer))
        if self._enabled and self._is_plain() and self.every_n_seconds is not None:
            self._ticker = _Ticker(self.every_n_seconds, self._tick)
        if self._enabled and not self._is_plain():
            console = _console()
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("[bold]fit[/] {task.fields[phase]:<10}"),
                BarColumn(bar_width=16),
                MofNCompleteColumn(),
                _Facts(),
                console=console,
                transient=False,
            )
            self._progress.start()
            self._progress.add_task("fit", total=_total_steps(trainer), phase=self._phase, facts="")

    def on_phase(self, trainer: L.Trainer, pl_module: L.LightningModule, phase: str) -> None:
        """Show the phase."""
        self._enter(phase)
        if phase == "rollout":
            self._speed.finish(trainer)
            self._speed.begin()
        self._announce(f"fit: first {phase}")
        self._refresh(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Move the bar."""
        now = time.monotonic()
        self._speed.step(trainer, now)
        if "first step" not in self._announced:
            took = now - self._began[1]
            self._announced.add("first step")
            if took >= _LONG:
                self._announce(f"fit: first step after {_clock(took)}, caches and compilation included")
        if self._ticker is not None and now - self._latest[0] >= _STALE:
            self._latest = (now, self.line(trainer))
        if trainer.global_step % self.refresh_rate == 0:
            self._refresh(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is a phase too."""
        self._enter("validation")
        self._refresh(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A stage without phases of its own trains again."""
        self._enter(_TRAINING)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a plain line where there is no terminal."""
        self._left_out = _left_out(trainer)
        self._speed.finish(trainer)
        self._latest = (time.monotonic(), self.line(trainer))
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0 or trainer.should_stop
        if self._enabled and self._progress is None and due:
            self.print(self._latest[1])
            if self._ticker is not None:
                self._ticker.again()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the live line."""
        self._refresh(trainer)
        self._close()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Whatever ended the run."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back before the traceback."""
        self._close()

    def line(self, trainer: L.Trainer) -> str:
        """All facts as one plain line."""
        last = "" if not trainer.max_epochs or trainer.max_epochs < 0 else f"/{trainer.max_epochs}"
        total = _total_steps(trainer)
        steps = f"step {trainer.global_step}" + (f"/{total}" if total else "")
        steps += f" ({self._left_out} left out)" if self._left_out else ""
        return f"fit epoch {trainer.current_epoch + 1}{last} {steps} {self.facts(trainer)}".rstrip()

    def facts(self, trainer: L.Trainer) -> str:
        """The monitors, the speed, the time left, and what the module wants shown."""
        metrics = trainer.callback_metrics
        words = [f"{label} {float(metrics[name]):.4g}" for label, name in MONITORS.items() if name in metrics]
        words += [
            f"{name} {value:.4g}"
            for name, value in trainer.progress_bar_metrics.items()
            if name not in MONITORS.values() and isinstance(value, float | int)
        ]
        if self._speed.value is not None:
            words.append(f"{self._speed.value:.0f} tok/s")
        left = self._seconds_left(trainer)
        return " ".join([*words, *([] if left is None else [f"{_clock(left)} left"])])

    def _seconds_left(self, trainer: L.Trainer) -> float | None:
        total, (first, began) = _total_steps(trainer), self._began
        done = trainer.global_step - first
        if total is None or done <= 0:
            return None
        return (time.monotonic() - began) / done * max(0, total - self._left_out - trainer.global_step)

    def _refresh(self, trainer: L.Trainer) -> None:
        if self._progress is not None:
            task = self._progress.task_ids[0]
            step = trainer.global_step
            self._progress.update(task, completed=step, phase=self._phase, facts=self.facts(trainer))

    def _is_plain(self) -> bool:
        return not _console().is_terminal if self.plain is None else self.plain

    def _enter(self, phase: str) -> None:
        self._phase, self._phase_began = phase, time.monotonic()

    def _announce(self, text: str) -> None:
        """A plain line, once; nothing on a terminal, whose live line says as much."""
        if self._enabled and text not in self._announced and self._is_plain():
            self.print(text)
        self._announced.add(text)

    def _tick(self) -> None:
        """From the ticker's thread: what the trainer's own thread noted last, and where it is now."""
        since = f" ({self._phase} for {_clock(time.monotonic() - self._phase_began)})"
        self.print(self._latest[1] + (since if self._phase != _TRAINING else ""))

    def _close(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
            self._ticker = None
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class _Speed:
    """Tokens per second of whole steps; see :class:`RLHFProgressBar`."""

    def __init__(self) -> None:
        self.value: float | None = None
        self._rollout_began: float | None = None
        self._stepped, self._tokens, self._first = 0.0, 0.0, 0.0

    def begin(self) -> None:
        """A rollout begins."""
        self._rollout_began = time.monotonic()

    def step(self, trainer: L.Trainer, now: float) -> None:
        """An update is done."""
        self._stepped = now
        tokens = trainer.callback_metrics.get("update/tokens")
        if self._rollout_began is None and tokens is not None:
            # The first step, with all that happens once, is where the clock starts.
            self._tokens, self._first = (self._tokens + float(tokens), self._first) if self._first else (0.0, now)
            self.value = self._tokens / (now - self._first) if now > self._first else None

    def finish(self, trainer: L.Trainer) -> None:
        """The iteration's updates are done."""
        tokens = trainer.callback_metrics.get("rollout/tokens")
        if self._rollout_began is not None and tokens is not None and self._stepped > self._rollout_began:
            self.value = float(tokens) / (self._stepped - self._rollout_began)


class _Ticker(threading.Thread):
    """Calls ``tick`` when nothing was printed for so many seconds."""

    def __init__(self, seconds: float, tick: Callable[[], None]) -> None:
        super().__init__(name="progress", daemon=True)
        self._seconds, self._call = seconds, tick
        self._event, self._stopped = threading.Event(), False
        self.start()

    def run(self) -> None:
        """Until stopped."""
        while not self._stopped:
            if not self._event.wait(self._seconds):
                self._call()
            self._event.clear()

    def again(self) -> None:
        """Begin to count anew."""
        self._event.set()

    def stop(self) -> None:
        """No further line."""
        self._stopped = True
        self._event.set()
        self.join()


class _Facts(ProgressColumn):
    """The facts, cut to what the terminal has room for instead of wrapped."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["facts"], overflow="ellipsis", no_wrap=True)


def _console() -> Console:
    # Bound late: pytest and notebooks swap sys.stdout.
    return Console(file=sys.stdout)


def _total_steps(trainer: L.Trainer) -> int | None:
    total = trainer.estimated_stepping_batches if trainer.max_steps < 0 else trainer.max_steps
    return int(total) if 0 < total < float("inf") else None


def _left_out(trainer: L.Trainer) -> int:
    """Planned updates of the epochs done that were not made (``loss.target_kl``, faults)."""
    total, epochs = _total_steps(trainer), trainer.max_epochs
    if total is None or trainer.max_steps >= 0 or not epochs or epochs < 0:
        return 0
    return max(0, total * (trainer.current_epoch + 1) // epochs - trainer.global_step)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
