"""The checkpoint a run resumes from: the newest one, written by time and at the ends of epochs."""

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
        every_n_epochs: Save at the end of every so many epochs, and of the last one; None: where the time has come, and
            at the last one's. For models whose checkpoint takes longer to write than an epoch should.

    Raises:
        ValueError: If ``minutes`` is negative, or ``every_n_steps`` or ``every_n_epochs`` is under 1.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        minutes: float | None = 10.0,
        every_n_steps: int | None = None,
        filename: str | None = None,
        every_n_epochs: int | None = 1,
    ) -> None:
        if minutes is not None and minutes < 0:
            raise ValueError(f"`minutes` ({minutes}) must not be negative.")
        for name, count in (("every_n_steps", every_n_steps), ("every_n_epochs", every_n_epochs)):
            if count is not None and (count < 1 or count != int(count)):
                raise ValueError(f"`{name}` ({count}) must be at least 1, and whole.")
        # Without version numbers: a resumed run would leave `last.ckpt` as it is and write `last-v1.ckpt`.
        # At every epoch's end, also in epochs without validation: by default Lightning would wait for the next one.
        super().__init__(
            dirpath, filename, save_last="link", enable_version_counter=False, save_on_train_epoch_end=True
        )
        self.minutes = minutes
        self.every_n_steps = every_n_steps
        self.epochs_between = every_n_epochs
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

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save at an epoch's end where its turn or the time has come, and at the end of the run."""
        done, most_epochs, most_steps = trainer.current_epoch + 1, trainer.max_epochs, trainer.max_steps
        last = trainer.should_stop or done == most_epochs or trainer.global_step == most_steps
        turn = self.epochs_between is not None and done % self.epochs_between == 0
        if last or turn or self._due(trainer):
            super().on_train_epoch_end(trainer, pl_module)

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
