"""The run's metrics.csv is Lightning's, row by row on the disk, and no write of it costs an older row."""

from __future__ import annotations

import csv
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger

from lit_rlhf.commands.csv_log import RunCSVLogger

LOGGED: list[dict[str, float]] = [{"b": 1.0}, {"b": 0.1, "a": 2.0}, {"a": float("nan")}, {"c": 1e-9, "b": 3.0}]
"""A second and a fourth row with a new name in them."""


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "version_0" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def log(logger: Any) -> None:
    for step, metrics in enumerate(LOGGED):
        logger.log_metrics(metrics, step)


def test_the_file_is_lightnings(tmp_path: Path) -> None:
    ours, theirs = RunCSVLogger(tmp_path / "ours"), CSVLogger(tmp_path / "theirs", name="csv")
    log(ours)
    log(theirs)
    theirs.finalize("success")
    assert [path.name for path in (tmp_path / "ours" / "csv" / "version_0").iterdir()] == ["metrics.csv"]
    assert read(tmp_path / "ours") == read(tmp_path / "theirs")  # without a word to ours that the run has ended


@pytest.mark.parametrize("done", [2, 3])
def test_a_row_that_cannot_be_written_costs_no_other(
    done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = RunCSVLogger(tmp_path)
    for step in range(done):
        logger.log_metrics(LOGGED[step], step)
    before = read(tmp_path)
    assert len(before) == done

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        logger.log_metrics(LOGGED[done], done)
    logger.finalize("failed")
    assert read(tmp_path) == before
