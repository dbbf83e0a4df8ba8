"""The run's ``metrics.csv``: what is logged is on the disk at once, and stays there."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.csv_logs import CSVLogger, ExperimentWriter
from typing_extensions import override

from lit_rlhf.files import append_whole, write_whole


class RunCSVLogger(CSVLogger):
    """Lightning's ``CSVLogger``, whose file neither a kill nor a full disk takes anything from.

    Lightning's keeps the last 100 rows in memory, which a kill takes although there are checkpoints of later steps, and
    empties the file whenever a new metric needs a new header.

    Args:
        save_dir: The run directory; the file is ``csv/version_N/metrics.csv`` in it.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__(save_dir, name="csv", flush_logs_every_n_steps=1)

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer."""
        if self._experiment is None:
            self._experiment = _WholeWriter(log_dir=self.log_dir)
        return self._experiment


class _WholeWriter(ExperimentWriter):
    @override
    def save(self) -> None:
        if not self.metrics:
            return
        path, rows = Path(self.metrics_file_path), self.metrics
        self.metrics = []  # what cannot be written now is not tried again when the run ends because of it
        names = sorted({name for row in rows for name in row} | set(self.metrics_keys))
        if names == self.metrics_keys:
            append_whole(path, self._text(rows, header=False))
            return
        self.metrics_keys = names
        write_whole(path, self._text([*_rows_of(path), *rows], header=True))

    def _text(self, rows: Any, *, header: bool) -> bytes:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.metrics_keys)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()


def _rows_of(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
