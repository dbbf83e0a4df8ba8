"""Where a run is: phase, speed, the four monitors, time left."""

from __future__ import annotations

import sys
import time
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
SPEED = "time/tokens_per_second"


class RLHFProgressBar(RolloutCallback, ProgressBar):
    """One live line on a terminal, one plain line per epoch elsewhere: no log spam.

    Shows stage, phase (``rollout``, ``scoring``, ``update``, ``validation``), epoch and step, time left, tokens per
    second and the four monitors of the paper: score, KL, perplexity, length. Metrics that the module logs with
    ``prog_bar=True`` follow, so it serves supervised stages as well. The phase comes from
    :func:`~lit_rlhf.callbacks.hooks.emit_phase`.

    Args:
        refresh_rate: Training batches between two updates of the live line.
        every_n_epochs: Epochs between two plain lines when the output is not a terminal.
        plain: True for plain lines, False for the live line, None to ask the terminal.

    Raises:
        ValueError: If a rate is under 1.
    """

    def __init__(self, refresh_rate: int = 1, every_n_epochs: int = 1, plain: bool | None = None) -> None:  # noqa: FBT001
        if refresh_rate < 1 or every_n_epochs < 1:
            raise ValueError(f"`refresh_rate` ({refresh_rate}) and `every_n_epochs` ({every_n_epochs}) must be >= 1.")
        super().__init__()
        self.refresh_rate = refresh_rate
        self.every_n_epochs = every_n_epochs
        self.plain = plain
        self._enabled = True
        self._phase = "setup"
        self._progress: Progress | None = None
        self._began = (0, 0.0)

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

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the live line."""
        self._began = (trainer.global_step, time.monotonic())
        console = _console()
        plain = not console.is_terminal if self.plain is None else self.plain
        if self._enabled and not plain:
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
        self._phase = phase
        self._refresh(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Move the bar."""
        if trainer.global_step % self.refresh_rate == 0:
            self._refresh(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is a phase too."""
        self._phase = "validation"
        self._refresh(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write a plain line where there is no terminal."""
        due = (trainer.current_epoch + 1) % self.every_n_epochs == 0 or trainer.should_stop
        if self._enabled and self._progress is None and due:
            self.print(self.line(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the live line."""
        self._refresh(trainer)
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the terminal back before the traceback."""
        self._close()

    def line(self, trainer: L.Trainer) -> str:
        """All facts as one plain line."""
        last = "" if not trainer.max_epochs or trainer.max_epochs < 0 else f"/{trainer.max_epochs}"
        total = _total_steps(trainer)
        steps = f"step {trainer.global_step}" + (f"/{total}" if total else "")
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
        if SPEED in metrics:
            words.append(f"{float(metrics[SPEED]):.0f} tok/s")
        left = self._seconds_left(trainer)
        return " ".join([*words, *([] if left is None else [f"{_clock(left)} left"])])

    def _seconds_left(self, trainer: L.Trainer) -> float | None:
        total, (first, began) = _total_steps(trainer), self._began
        done = trainer.global_step - first
        if total is None or done <= 0:
            return None
        return (time.monotonic() - began) / done * max(0, total - trainer.global_step)

    def _refresh(self, trainer: L.Trainer) -> None:
        if self._progress is not None:
            task = self._progress.task_ids[0]
            step = trainer.global_step
            self._progress.update(task, completed=step, phase=self._phase, facts=self.facts(trainer))

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


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


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
