"""The checkpoint a run resumes from: the newest one, written by time as well as at every epoch's end."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_rlhf.distributed import any_rank


class RunCheckpoint(ModelCheckpoint):
    """Keeps the newest state, from which ``--ckpt_path last`` goes on, and ``last.ckpt``, a link to it.

    Lightning's own ``train_time_interval`` does nothing for modules that optimize by hand, as all here do, and
    Lightning keeps every checkpoint that a run was resumed from. This one removes what it wrote before as soon as the
    next one is whole, also where a kill came in between.

    Args:
        dirpath: Folder; default: ``checkpoints`` in the run directory.
        minutes: Save inside an epoch when so much time has passed since the last checkpoint; None: at its end alone.
        every_n_steps: Save inside an epoch whenever the global step is a multiple of it, too.
        filename: Pattern of the file name; default: epoch and step.

    Raises:
        ValueError: If ``minutes`` is negative or ``every_n_steps`` is under 1.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        minutes: float | None = 10.0,
        every_n_steps: int | None = None,
        filename: str | None = None,
    ) -> None:
        if minutes is not None and minutes < 0:
            raise ValueError(f"`minutes` ({minutes}) must not be negative.")
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(f"`every_n_steps` ({every_n_steps}) must be at least 1.")
        # Without version numbers: a resumed run would leave `last.ckpt` as it is and write `last-v1.ckpt`.
        # At every epoch's end, also in epochs without validation: by default Lightning would wait for the next one.
        super().__init__(
            dirpath, filename, save_last="link", enable_version_counter=False, save_on_train_epoch_end=True
        )
        self.minutes = minutes
        self.every_n_steps = every_n_steps
        self._saved_at = 0.0
        self._written: list[str] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The time runs from here."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save inside an epoch. Where a validation or the epoch's end follows, a resume from now would leave it out."""
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        if trainer.is_last_batch or loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            return
        if self._due(trainer) and not self._should_skip_saving_checkpoint(trainer):
            found = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, found)
            self._save_last_checkpoint(trainer, found)

    def _due(self, trainer: L.Trainer) -> bool:
        """The same answer on all ranks, whose clocks differ."""
        if self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0:
            return True
        if self.minutes is None:
            return False
        return any_rank(time.monotonic() - self._saved_at >= 60 * self.minutes, trainer.strategy.root_device)

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        name = Path(filepath).name
        # The checkpoint itself names its predecessor, for the run that resumes from it if a kill comes right after it.
        self._written = [*(n for n in self._written if n != name), name]
        super()._save_checkpoint(trainer, filepath)
        for old in self._written[:-1]:
            self._remove_checkpoint(trainer, str(Path(filepath).parent / old))
        self._written = [name]
        self._saved_at = time.monotonic()

    def _should_remove_checkpoint(self, *_: Any) -> bool:
        return False  # done above; Lightning would spare the checkpoint that the run was resumed from

    def state_dict(self) -> dict[str, Any]:
        """What Lightning keeps, and the names of what is written and not removed."""
        return {**super().state_dict(), "written": list(self._written)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what lies in this folder; what was written into another one is left there."""
        super().load_state_dict(state_dict)
        if state_dict.get("dirpath") == self.dirpath:
            self._written = list(state_dict["written"])
            self._last_checkpoint_saved = self.best_model_path
