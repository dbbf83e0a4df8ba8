"""Plain Hugging Face folders out of a run, without being asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from lit_rlhf.callbacks.best_policy import BestPolicy
from lit_rlhf.callbacks.hooks import RolloutCallback, writes_files
from lit_rlhf.distributed import run_together


class ExportCallback(RolloutCallback):
    """Calls ``pl_module.export(path)`` at the end of ``fit`` (``final``) and for every new best policy (``best``).

    Best is what a :class:`~lit_rlhf.callbacks.best_policy.BestPolicy` of the same trainer says; the weights are
    exported before the next update moves them. ``export`` is called on all ranks and writes where it must.

    Args:
        dirpath: Folder that gets ``final`` and ``best``; default: ``export`` in the run directory.
        final: Export at the end.
        best: Export the best policy.

    Raises:
        ValueError: At the start, if the module has no ``export``, or ``best`` is wanted and nothing decides it.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        final: bool = True,  # noqa: FBT001, FBT002
        best: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        self.dirpath = dirpath
        self.final = final
        self.best = best
        self._exported = ""
        self._trained = False

    @property
    def state_key(self) -> str:
        """Of its own for each folder."""
        return self._generate_state_key(dirpath=self.dirpath)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse early what would fail after hours."""
        self._trained = False
        if not callable(getattr(pl_module, "export", None)):
            raise ValueError(f"`ExportCallback` needs `{type(pl_module).__name__}.export(path)`, which does not exist.")
        if self.best and self._best_path(trainer) is None:
            raise ValueError("`ExportCallback(best=True)` needs a `BestPolicy` among the trainer's callbacks.")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """There is something to train; :meth:`on_train_end` will come."""
        self._trained = True

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Export a best policy that the last validation found; checkpoint callbacks run after all others."""
        self._export_best(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export what there is."""
        self._export_best(trainer, pl_module)
        if self.final:
            self._export(trainer, pl_module, "final")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Export for a run that was killed after its last update: resumed, it trains nothing and ends at once."""
        if self.final and not self._trained:
            self._export(trainer, pl_module, "final")

    def state_dict(self) -> dict[str, Any]:
        """The best checkpoint that was exported last."""
        return {"exported": self._exported}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do not export it again."""
        self._exported = state_dict["exported"]

    def _export_best(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = self._best_path(trainer) if self.best else None
        if path and path != self._exported:
            self._exported = path
            self._export(trainer, pl_module, "best")

    def _export(self, trainer: L.Trainer, pl_module: L.LightningModule, name: str) -> None:
        if not writes_files(trainer):
            return
        path = Path(self.dirpath or Path(trainer.default_root_dir) / "export") / name
        # All wait for rank 0, and a disk that is full ends all of them.
        run_together(lambda: pl_module.export(path))  # type: ignore[operator]
        if trainer.is_global_zero:
            print(f"model: {path}", flush=True)  # noqa: T201

    @staticmethod
    def _best_path(trainer: L.Trainer) -> str | None:
        found = [c for c in trainer.checkpoint_callbacks if isinstance(c, BestPolicy)]
        return found[0].best_model_path if found else None
