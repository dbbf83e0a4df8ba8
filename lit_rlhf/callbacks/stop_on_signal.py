"""A run that is told to end by a signal saves first, on all ranks, and is put back into SLURM's queue."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.trainer.states import TrainerFn

from lit_rlhf import signals
from lit_rlhf.callbacks.hooks import RolloutCallback
from lit_rlhf.distributed import all_reduce_max
from lit_rlhf.strategies.checkpoint_io import existing, latest_checkpoint, leftovers, remove

FILENAME = "interrupted.ckpt"
REQUEUED = (signal.SIGUSR1, signal.SIGUSR2)


class StopOnSignal(RolloutCallback):
    """Ends ``fit`` on SIGUSR1, SIGUSR2 or SIGTERM with a checkpoint from which nothing is lost.

    The handlers only note the signal (:mod:`lit_rlhf.signals`). Before each batch, and before and after each rollout,
    the ranks agree whether one of them has noted one; then all save ``checkpoints/interrupted.ckpt`` in the run
    directory and end with exit code 128 + signal and one line. Under SLURM a job that got SIGUSR1 or SIGUSR2 is
    requeued first, unless a plugin says ``SLURMEnvironment(auto_requeue=False)``. A validation under way is finished. A
    run that has nothing left to do ends as if there were no signal. Nothing is saved where the trainer writes no
    checkpoints.

    Lightning's own handlers, which save and communicate wherever the program happens to be, are kept out.

    What earlier interruptions and kills left in the run directory (``interrupted.ckpt``, Lightning's
    ``hpc_ckpt_N.ckpt``, half-written files) is removed once there is a newer whole checkpoint than at the start.
    """

    def __init__(self) -> None:
        self._fitting = False
        self._before: dict[int, Any] = {}
        self._left: list[Path] = []
        self._newest: tuple[Path, int] | None = None

    # ---------------------------------------------------------------- where the note is looked at

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take the place of Lightning's handlers; a signal of before ends the run before a model is loaded."""
        self._fitting = stage == TrainerFn.FITTING
        if not self._fitting:
            return
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        self._before = signals.listen()
        # First of all callbacks: what it saves at a batch's start is then the state at the end of the batch before.
        trainer.callbacks = [self, *(c for c in trainer.callbacks if c is not self)]  # type: ignore[attr-defined]
        self._agree(trainer, save=False)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Models are loaded; from here on the leftovers of others are known."""
        self._agree(trainer, save=False)
        if trainer.is_global_zero:
            self._left, self._newest = leftovers(_folder(trainer), _run(trainer)), _newest(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Between two updates."""
        self._agree(trainer)
        if self._left:
            self._clear(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After the last save there is no further batch."""
        if self._left:
            self._clear(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The handlers of before."""
        signals.restore(self._before)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """The handlers of before, unless it is a signal that ends the run."""
        if not isinstance(exception, SystemExit):
            signals.restore(self._before)

    def on_phase(self, trainer: L.Trainer, pl_module: L.LightningModule, phase: str) -> None:
        """Around the rollout; while it runs, an engine may give it up (:func:`lit_rlhf.signals.check`)."""
        if self._fitting and phase in ("rollout", "scoring"):
            signals.rollout_may_end(allowed=False)
            self._agree(trainer)
            signals.rollout_may_end(allowed=phase == "rollout")

    # ---------------------------------------------------------------- the end

    def _agree(self, trainer: L.Trainer, *, save: bool = True) -> None:
        device = trainer.strategy.root_device
        number = int(all_reduce_max(torch.tensor(signals.received(), device=device)))
        if number:
            self._end(trainer, signal.Signals(number), save=save)

    def _end(self, trainer: L.Trainer, number: signal.Signals, *, save: bool) -> None:
        told = "before the first update; there is nothing new to save"
        if save and _writes_checkpoints(trainer):
            started = time.monotonic()
            trainer.save_checkpoint(_folder(trainer) / FILENAME)
            took = f"{time.monotonic() - started:.1f} s"
            told = f"at step {trainer.global_step}; saved in {took}, `--ckpt_path last` resumes from it"
        elif save:
            told = f"at step {trainer.global_step}; not saved, for the trainer writes no checkpoints"
        signals.ending()
        if trainer.is_global_zero:
            requeued = _requeue() if number in REQUEUED and _may_requeue(trainer) else ""
            signals.tell(f"ended by {number.name} {told}.{requeued}")
        # Lightning's launcher kills the job at once when a process that it started ends with anything but 0.
        started_by_rank_zero = isinstance(_environment(trainer), LightningEnvironment) and trainer.local_rank > 0
        raise SystemExit(0 if started_by_rank_zero else 128 + number)

    # ---------------------------------------------------------------- clearing up

    def _clear(self, trainer: L.Trainer) -> None:
        newest = _newest(trainer)
        if newest is None or newest == self._newest:
            return
        for path in self._left:
            remove(path)
        self._left = []


def _run(trainer: L.Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _folder(trainer: L.Trainer) -> Path:
    return _run(trainer) / "checkpoints"


def _writes_checkpoints(trainer: L.Trainer) -> bool:
    return bool(trainer.checkpoint_callbacks) and not getattr(trainer, "fast_dev_run", False)


def _newest(trainer: L.Trainer) -> tuple[Path, int] | None:
    """The newest whole checkpoint and when it was written."""
    path = latest_checkpoint(_folder(trainer))
    return None if path is None else (path, existing(path).stat().st_mtime_ns)


def _environment(trainer: L.Trainer) -> Any:
    return trainer._accelerator_connector.cluster_environment


def _may_requeue(trainer: L.Trainer) -> bool:
    """Whether this is a SLURM batch job whose owner has not said no."""
    environment = _environment(trainer)
    wanted = environment.auto_requeue if isinstance(environment, SLURMEnvironment) else True
    return wanted and "SLURM_JOB_ID" in os.environ and shutil.which("scontrol") is not None


def _requeue() -> str:
    """Put the job back into the queue; what there is to say about it."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return f" SLURM job {job} is requeued."
    return f" SLURM job {job} could not be requeued ({' '.join(done.stderr.split())}): submit it again."
