"""The command line in this process: run it, catch how it ends, and say what it wrote."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from lit_rlhf.cli import main


def write_config(path: Path, config: Mapping[str, Any]) -> str:
    """``config`` as a YAML file; its path as a command line wants it."""
    path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    return str(path)


def run(*words: str) -> None:
    """`lit-rlhf WORDS`, with the process's random state put back (the CLI seeds everything)."""
    state, torch_state = random.getstate(), torch.get_rng_state()
    try:
        main(list(words))
    finally:
        random.setstate(state)
        torch.set_rng_state(torch_state)


class Ended(NamedTuple):
    """How a command ended: what a shell sees."""

    code: int | str
    out: str
    err: str


def ended(capsys: pytest.CaptureFixture[str], *words: str) -> Ended:
    """`lit-rlhf WORDS` through the entry point of the console script, to its end."""
    capsys.readouterr()
    code: int | str | None = 0
    try:
        run(*words)
    except SystemExit as stopped:
        code = stopped.code
    return Ended(code or 0, *capsys.readouterr())


def refused(capsys: pytest.CaptureFixture[str], *words: str, code: int = 2) -> str:
    """The one line on stderr with which `lit-rlhf WORDS` ends."""
    found = ended(capsys, *words)
    lines = found.err.splitlines()
    assert found.code == code, found.err
    assert len(lines) == 1, found.err
    assert lines[0].startswith("lit-rlhf: ")
    return lines[0]


def files_under(folder: Path) -> set[str]:
    """Every file below ``folder``, relative."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def ppo_config(world: Path, root: Path | str) -> dict[str, Any]:
    """PPO on the tiny world of ``tests.modules.tiny_ppo`` as a config: two iterations of two updates."""
    return {
        "trainer": {
            "default_root_dir": str(root),
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
        },
        "model": {
            "class_path": "PPOModule",
            "init_args": {
                "policy": str(world / "policy"),
                "reward": {"class_path": "ModelReward", "init_args": {"path": str(world / "reward")}},
                "sampling": {"max_response_length": 6},
                "schedule": {"kind": "constant", "warmup": 0},
                "optimizer": {"lr": 1e-3, "critic_lr": 1e-3},
            },
        },
        "data": {
            "class_path": "RolloutDataModule",
            "init_args": {
                "train": str(world / "prompts.jsonl"),
                "rollout_batch_size": 8,
                "minibatch_size": 4,
                "max_prompt_length": 32,
            },
        },
    }
