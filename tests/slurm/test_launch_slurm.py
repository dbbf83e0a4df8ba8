"""bin/launch-slurm: the script it submits; where a SLURM can be started, a job that comes back from a signal."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from tests.distributed_harness import ROOT
from tests.soak import slurm
from tests.soak.kills import Trial, checkpoints, weights

LAUNCH = ["bash", str(ROOT / "bin" / "launch-slurm")]


def dry_run(*options: str) -> list[str]:
    command = [*LAUNCH, "--dry-run", *options, "--", "fit", "--config", "my run/it's.yaml"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_script_asks_for_one_task_a_device_and_for_a_signal_in_time() -> None:
    script = dry_run("--nodes", "2", "--devices", "4", "--time", "1:00:00", "--grace", "300")
    for line in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "time=1:00:00", "requeue", "signal=SIGUSR1@300"):
        assert f"#SBATCH --{line}" in script
    assert script[-1].split() == ["--trainer.devices", "4", "--trainer.num_nodes", "2"]
    assert script[-2].endswith(r"-m lit_rlhf fit --config my\ run/it\'s.yaml --ckpt_path last " + "\\")


def test_nodes_without_gpus_are_not_asked_for_any() -> None:
    script = dry_run("--cpu")
    assert not any("gpus" in line for line in script)
    assert not [line for line in script if not line.strip()]


@pytest.mark.parametrize("options", [("--gpu",), ()])
def test_what_cannot_be_understood_is_refused(options: tuple[str, ...]) -> None:
    ended = subprocess.run([*LAUNCH, *options], check=False, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "bin/launch-slurm --nodes 1" in ended.stdout + ended.stderr


@pytest.mark.distributed
@pytest.mark.skipif(hasattr(os, "geteuid") and bool(slurm.needed()), reason="needs root, slurm-wlm and munge")
def test_a_job_that_is_signalled_comes_back_by_itself_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Three such signals, and the time limit's own: `python -m tests.soak.slurm`."""
    trial = Trial(tmp_path / "runs", "ddp", 2, signal.SIGUSR1, random.Random(0))
    expected, files = trial.undisturbed()
    with slurm.cluster(tmp_path / "cluster"):
        job = slurm.Job(trial.new_run("slurm"), ["--time", "1:00:00"])
        job.reach("update", 0)
        job.signal()
        job.wait(lambda: job.restarts() == 1, "no requeue after the signal")
        job.wait(job.ended, "the job does not end")
        assert job.state_seen == "COMPLETED", job.output()
        assert "ended by SIGUSR1 at step" in job.output()
    assert (weights(job.run), checkpoints(job.run)) == (expected, files)
