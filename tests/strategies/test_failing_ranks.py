"""One rank fails, dies, freezes or hangs: the job ends, and its last line says which rank and why."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import ppo_config, write_config
from tests.distributed_harness import run_group

pytestmark = pytest.mark.distributed


def run(world: Path, root: Path, reward: str, strategy: Any, **trainer: Any) -> tuple[int, list[str]]:
    """`lit-rlhf fit` on two processes: exit code and lines of the output. No process must be left."""
    config = ppo_config(world, root)
    beat = {"class_path": "Heartbeat", "init_args": {"silence": 6.0, "every": 0.5}}
    config["trainer"] |= {"devices": 2, "strategy": strategy, "logger": False, "callbacks": [beat], **trainer}
    function = f"tests.strategies.fault_rewards:{reward}"
    config["model"]["init_args"]["reward"] = {"class_path": "PythonReward", "init_args": {"function": function}}
    config["model"]["init_args"]["critic"] = {"init": "policy"}
    root.mkdir(parents=True)
    command = [sys.executable, "-m", "lit_rlhf", "fit", "--config", write_config(root / "config.yaml", config)]
    code, output, survivors = run_group(command, timeout=150)
    assert not survivors, output
    return code, [line for line in output.splitlines() if line.strip()]


@pytest.mark.parametrize(("strategy", "rank"), [("ddp", 0), ("deepspeed_stage_2_cpu", 1)])
def test_the_own_error_is_the_last_line(world: Path, tmp_path: Path, strategy: str, rank: int) -> None:
    code, lines = run(world, tmp_path / "run", f"raises_on_{rank}", strategy)
    assert code != 0
    assert "ArithmeticError: the reward's own error" in lines[-1], "\n".join(lines)
    assert sum("Traceback" in line for line in lines) <= 2, "\n".join(lines)  # the error and its cause
    assert not any("closed by peer" in line for line in lines), "\n".join(lines)


@pytest.mark.parametrize(
    ("rank", "told"), [(0, "rank 0 ended without a word"), (1, "local rank 1 was killed by SIGKILL")]
)
def test_a_killed_rank_is_named(world: Path, tmp_path: Path, rank: int, told: str) -> None:
    code, lines = run(world, tmp_path / "run", f"killed_on_{rank}", "ddp")
    assert code != 0
    assert told in lines[-1], "\n".join(lines)
    assert not any("Traceback" in line for line in lines), "\n".join(lines)


def test_a_frozen_rank_ends_the_job(world: Path, tmp_path: Path) -> None:
    code, lines = run(world, tmp_path / "run", "frozen_on_1", "ddp")
    assert code == 1
    assert "nothing was heard of rank 1 for" in lines[-1], "\n".join(lines)


@pytest.mark.parametrize("name", ["DDPStrategy", "CPUZeroStrategy"])
def test_a_hanging_rank_ends_the_job_within_the_time_limit(world: Path, tmp_path: Path, name: str) -> None:
    # Seconds enough for ranks to find each other on a busy machine.
    strategy = {"class_path": name, "init_args": {"timeout": "0:00:20"}}
    code, lines = run(world, tmp_path / "run", "hangs_on_1", strategy)
    assert code == 1
    assert "did not meet within the strategy's `timeout`" in lines[-1], "\n".join(lines)
    assert "rank 1 has been in `scoring` for" in lines[-1], "\n".join(lines)
    assert not any("Traceback" in line for line in lines), "\n".join(lines)
