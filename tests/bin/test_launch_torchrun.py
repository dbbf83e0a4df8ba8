"""bin/launch-torchrun on two machines (two trees of processes that meet over loopback): the bits of `devices: 2`."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.command_line import ppo_config, run, write_config
from tests.distributed_harness import ROOT, clean_environment, kill_group, run_dist
from tests.soak.kills import checkpoints, weights

pytestmark = pytest.mark.distributed

STRATEGIES = ("ddp", "deepspeed_stage_2_cpu")
ONE_MACHINE = """
    from lit_rlhf.cli import main
    for config in {configs!r}:
        main(["fit", "--config", config, "--trainer.devices", "2"])
"""


@pytest.fixture(scope="module")
def config(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """A config's path by strategy and name of the run, whose directory lies beside it."""
    root = tmp_path_factory.mktemp("launch")

    def written(strategy: str, name: str) -> str:
        content = ppo_config(world, root / strategy / name)
        content["trainer"] |= {"strategy": strategy, "logger": False}
        (root / strategy).mkdir(exist_ok=True)
        return write_config(root / strategy / f"{name}.yaml", content)

    return written


@pytest.fixture(scope="module")
def one_machine(config: Callable[[str, str], str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs with `devices: 2`, in one launch."""
    configs = {strategy: config(strategy, "one-machine") for strategy in STRATEGIES}
    run_dist(ONE_MACHINE.format(configs=list(configs.values())), tmp_path_factory.mktemp("body"), "torchrun")
    return {strategy: Path(path).with_suffix("") for strategy, path in configs.items()}


@pytest.fixture(scope="module")
def one_process(config: Callable[[str, str], str]) -> Path:
    path = config("auto", "one-process")
    run("fit", "--config", path)
    return Path(path).with_suffix("")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def on_two_machines(path: str) -> None:
    """The launcher once a machine, at the same time, with one device each."""
    environment = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "NNODES": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    machines = [
        subprocess.Popen(
            ["bash", "bin/launch-torchrun", "1", "fit", "--config", path],
            env=clean_environment({**environment, "NODE_RANK": str(number)}),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for number in range(2)
    ]
    try:
        ended = [(machine.communicate(timeout=240)[0], machine.returncode) for machine in machines]
    finally:
        for machine in machines:
            kill_group(machine.pid)
    assert [code for _, code in ended] == [0, 0], "\n".join(output for output, _ in ended)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_machines_give_the_bits_of_one(
    strategy: str, config: Callable[[str, str], str], one_machine: dict[str, Path], one_process: Path
) -> None:
    path = config(strategy, "two-machines")
    on_two_machines(path)
    found, expected = Path(path).with_suffix(""), one_machine[strategy]
    assert checkpoints(found) == checkpoints(expected)
    assert weights(found) == weights(expected)
    two, alone = (load_file(root / "export" / "final" / "model.safetensors") for root in (found, one_process))
    for name, tensor in alone.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5)
