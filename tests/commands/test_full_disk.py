"""A file system that is full at any write of a run: one line, exit code 2, and nothing older is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import files_under, ppo_config, write_config
from tests.distributed_harness import clean_environment

LOGGERS: dict[str, Any] = {
    "TensorBoardLogger": {"name": "tensorboard"},
    "CSVLogger": {"name": "csv", "flush_logs_every_n_steps": 1},
}

# The moment the disk is full, who writes next, and what the line names.
CASES = [
    ("rollout", "SampleLogger", "samples.jsonl'"),
    ("validation", "", "evaluations/val-step000004.jsonl'"),
    ("epoch", "", "epoch=1-step=4.ckpt could not be written (No space left on device)"),
    ("end", "", "export/final'"),
    ("batch", "TensorBoardLogger", "No space left on device"),
    ("batch", "CSVLogger", "No space left on device"),
]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of three megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fit(world: Path, root: Path, *, at: str | None, writer: str) -> subprocess.CompletedProcess[str]:
    """One start of the run in ``root``; at the moment ``at`` the disk is filled."""
    config = ppo_config(world, root)
    trainer, callbacks = config["trainer"], []
    if at is not None:
        options = {"folder": str(root.parent), "at": at}
        callbacks.append({"class_path": "tests.strategies.full_disk.FillDisk", "init_args": options})
    if writer in LOGGERS:
        trainer["logger"] = {"class_path": writer, "init_args": {"save_dir": str(root), **LOGGERS[writer]}}
    else:
        trainer["logger"] = False
        config["data"]["init_args"]["val"] = str(world / "prompts.jsonl")
    if writer == "SampleLogger":
        callbacks.append({"class_path": writer, "init_args": {"every_n_iterations": 1}})
    trainer["callbacks"] = callbacks
    path = write_config(root.parent.parent / "config.yaml", config)
    command = [sys.executable, "-m", "lit_rlhf", "fit", "--config", path, "--ckpt_path", "last"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())


@pytest.mark.parametrize(("at", "writer", "told"), CASES)
def test_is_one_line_and_loses_nothing_older(world: Path, small: Path, at: str, writer: str, told: str) -> None:
    run = small / "run"
    full = fit(world, run, at=at, writer=writer)
    lines = [line for line in full.stderr.splitlines() if line.startswith("lit-rlhf") or "rror" in line]
    assert full.returncode == 2, full.stderr
    assert len(lines) == 1, full.stderr
    assert told in lines[0]
    kept = files_under(run)
    assert not [name for name in kept if "tmp" in name or "partial" in name]
    if at in ("rollout", "validation", "epoch"):  # in the second iteration
        assert {"checkpoints/epoch=0-step=2.ckpt", "evaluations/val-step000002.jsonl"} <= kept
    (small / "filler").unlink()
    again = fit(world, run, at=None, writer=writer)
    assert again.returncode == 0, again.stderr
    assert (run / "checkpoints" / "epoch=1-step=4.ckpt").exists()
    assert (run / "export" / "final" / "config.json").exists()
