"""Predictions as JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from lit_rlhf.callbacks.hooks import writes_files
from lit_rlhf.distributed import all_gather_object, run_together
from lit_rlhf.jsonl import write_rows


class JSONLWriter(BasePredictionWriter):
    """Writes the rows (dicts) that ``predict_step`` returns to one file, all ranks together, in prompt order.

    Args:
        path: The file; rank 0 writes it when prediction ends.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(write_interval="epoch")
        self.path = Path(path)

    def write_on_epoch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather and write; nothing where a module's ``check_predictions`` says that a rank failed."""
        check = getattr(pl_module, "check_predictions", None)
        if callable(check):
            check()
        own = [row for batch in predictions for row in batch if isinstance(row, dict)]
        rows = [row for part in all_gather_object(own) for row in part]
        rows.sort(key=lambda row: (row.get("sample", 0), row.get("row", 0)))
        wanted = trainer.is_global_zero and bool(rows) and writes_files(trainer)
        run_together(lambda: self._write(rows) if wanted else None)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        write_rows(self.path, rows)
        print(f"{len(rows)} predictions: {self.path}")  # noqa: T201
