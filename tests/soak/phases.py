"""A callback that leaves word of what a run is doing, for who wants to strike at that moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from lit_rlhf.callbacks.hooks import RolloutCallback


class Phases(RolloutCallback):
    """Rank 0 writes each phase it enters, with a number that grows, to a file."""

    def __init__(self, path: str) -> None:
        self.path, self.count = Path(path), 0

    def _enter(self, trainer: L.Trainer, phase: str) -> None:
        self.count += 1
        if trainer.is_global_zero:
            self.path.write_text(f"{self.count} {phase}\n", encoding="utf-8")

    def on_phase(self, trainer: L.Trainer, pl_module: L.LightningModule, phase: str) -> None:
        """A rollout's."""
        if phase != "update":
            self._enter(trainer, "rollout")

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        """An update's."""
        self._enter(trainer, "update")


def read(path: Path) -> tuple[int, str]:
    """The number of the phase under way and its name; (0, "start-up") before the first."""
    words = path.read_text(encoding="utf-8").split() if path.exists() else []
    return (int(words[0]), words[1]) if len(words) == 2 else (0, "start-up")
