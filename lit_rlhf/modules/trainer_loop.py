"""What modules need of Lightning's trainer: its length in steps, where it writes, and two things it counts wrongly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn


def total_steps(trainer: L.Trainer) -> float:
    """Optimizer steps of the whole fit, infinite when unbounded.

    Not ``trainer.estimated_stepping_batches``: that sets the loaders up before a checkpoint's loader state is at hand,
    and the state would then be dropped without a word (a resumed run would start at its first rollout again).
    """
    steps = float("inf")
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        steps = float(trainer.max_epochs * steps_per_epoch(trainer))
    return min(steps, float(trainer.max_steps)) if trainer.max_steps >= 0 else steps


def steps_per_epoch(trainer: L.Trainer) -> int:
    """Optimizer steps of an epoch, before Lightning has set the loaders up."""
    batches = len(trainer.fit_loop._data_source.dataloader())
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))


def log_every_epoch(trainer: L.Trainer) -> None:
    """Make loggers get every step where an epoch has fewer steps than Lightning logs one of.

    What is measured once an epoch (of a rollout, say) is logged at the epoch's first step: with Lightning's default
    of one step in 50 all but every 25th of such epochs of two steps would leave nothing in any logger.
    """
    steps, every = steps_per_epoch(trainer), getattr(trainer, "log_every_n_steps", 1)
    if trainer.loggers and every > 1 and steps < every:
        trainer.log_every_n_steps = 1  # type: ignore[attr-defined]  # set by a connector
        rank_zero_warn(
            f"`log_every_n_steps` ({every}) is more than the {steps} steps of an epoch, of which most would leave "
            "nothing in the logs: every step is logged. `Trainer(log_every_n_steps=1)` says so itself."
        )


def load_dropped_loader_state(trainer: L.Trainer) -> None:
    """Give the train loader the checkpoint's state where Lightning kept it back.

    Lightning 2.6 loads it only when the checkpoint's epoch counters say that an epoch was under way. They do not say so
    after an epoch's end, nor in the middle of an epoch of a run that was itself resumed at the end of one: the run
    would start at its first rollout again. Loaders here read their state at the first batch, so this is in time.
    """
    loop = trainer.fit_loop
    if loop._combined_loader_states_to_load and loop._combined_loader is not None:
        loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
        loop._combined_loader_states_to_load = []


def forget_batch_under_way(trainer: L.Trainer) -> None:
    """Take back what Lightning has counted of a batch that was begun, not done, when the checkpoint was written.

    It is begun again. Counted twice, it would move the loggers' steps and a `val_check_interval` that spans epochs.
    """
    if not trainer.fit_loop.restarting:
        return
    loop = trainer.fit_loop.epoch_loop
    current: Any = loop.batch_progress.current
    total: Any = loop.batch_progress.total
    begun = total.ready > total.processed
    total.ready = total.started = total.processed
    if current.processed == 0:
        # Nothing of the epoch is done. Lightning would take it for one whose validation is due, and count a step.
        loop.restarting = False
    elif begun:
        loop._batches_that_stepped -= 1  # the loop is about to add one, as for a batch that was done


def run_directory(trainer: L.Trainer) -> Path:
    """Where everything of a run is written: the trainer's ``default_root_dir``."""
    return Path(os.fspath(trainer.default_root_dir))
