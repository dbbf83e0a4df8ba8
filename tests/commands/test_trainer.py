"""`trainer.precision: auto`: what the machine multiplies well, by what torch says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CUDAAccelerator

from lit_rlhf.commands.trainer import MachineTrainer, precision_here

ROOT = Path(__file__).resolve().parents[2]
OPTIONS: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}


@pytest.mark.parametrize(
    ("told", "chosen"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, "bf16-mixed"),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, "bf16-mixed"),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, "32-true"),
        ({"architecture": "aarch64"}, "32-true"),
        ({}, "32-true"),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(
    told: dict[str, Any], chosen: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    trainer = MachineTrainer(precision="auto", accelerator="cpu", **OPTIONS)
    assert trainer.precision == chosen
    assert f"lit-rlhf: `trainer.precision: auto` is {chosen} on this machine\n" in capsys.readouterr().err


@pytest.mark.parametrize("supported", [True, False])
def test_so_is_a_gpu_where_the_run_is_on_one(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    opposite = {"architecture": "x86_64", "avx512_bf16": not supported, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: opposite, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)
    chosen = {True: "bf16-mixed", False: "32-true"}
    assert {precision_here(name) for name in ("auto", "gpu", "cuda", CUDAAccelerator())} == {chosen[supported]}
    assert precision_here("cpu") == chosen[not supported]


def test_what_is_given_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    given = {None: "32-true", "32-true": "32-true", "bf16-mixed": "bf16-mixed"}
    for precision, meant in given.items():
        assert MachineTrainer(precision=precision, accelerator="cpu", **OPTIONS).precision == meant


def test_presets_leave_it_to_the_machine() -> None:
    presets = sorted((ROOT / "configs" / "presets").glob("*.yaml"))
    assert len(presets) == 3
    assert {yaml.safe_load(file.read_text())["trainer"]["precision"] for file in presets} == {"auto"}
