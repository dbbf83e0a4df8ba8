"""A callback that fills the disk at a chosen moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L


def fill(folder: Path) -> None:
    """Take the last byte of the file system of ``folder``."""
    with (folder / "filler").open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue


class FillDisk(L.Callback):
    """Leaves no room at the second time of a hook: ``rollout``, ``batch``, ``validation``, ``epoch`` or ``end``."""

    def __init__(self, folder: str, at: str) -> None:
        self.folder, self.at, self.seen = Path(folder), at, 0

    def _passing(self, place: str) -> None:
        if place == self.at:
            self.seen += 1
            if self.seen == 2 or place == "end":
                fill(self.folder)

    def on_phase(self, trainer: Any, module: Any, phase: str) -> None:
        self._passing("rollout" if phase == "scoring" else "")

    def on_train_batch_start(self, *_: Any) -> None:
        self._passing("batch")

    def on_validation_start(self, *_: Any) -> None:
        self._passing("validation")

    def on_train_epoch_end(self, *_: Any) -> None:
        self._passing("epoch")

    def on_train_end(self, *_: Any) -> None:
        self._passing("end")
