"""DeepSpeed's ZeRO-2 on one GPU: it starts, equals one device, saves and resumes, with and without offloading."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.distributed_harness import run_dist

pytestmark = pytest.mark.cuda

BODY = """
    from pathlib import Path
    import lit_rlhf.strategies
    from tests.cuda.zero_checks import checks
    record(**checks(Path({world!r}), Path({out!r}), {accelerator!r}))
"""


@pytest.fixture(scope="module")
def found(world: Path, tmp_path_factory: pytest.TempPathFactory, accelerator: str) -> dict[str, Any]:
    """Everything in one process of its own: DeepSpeed keeps a process group and an accelerator for good."""
    folder = tmp_path_factory.mktemp("zero")
    body = BODY.format(world=str(world), out=str(folder / "out"), accelerator=accelerator)
    visible = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")} if accelerator == "cuda" else {}
    return run_dist(body, folder, processes=1, timeout=240, env=visible).ranks[0]


@pytest.mark.parametrize("strategy", ["zero", "offload"])
def test_4_equals_one_device(found: dict[str, Any], strategy: str) -> None:
    for alone, sharded in zip(found["one"]["metrics"], found[strategy]["metrics"], strict=True):
        for name in ("loss/policy", "loss/value", "update/grad_norm", "rollout/score", "rollout/kl"):
            assert sharded[name] == pytest.approx(alone[name], rel=5e-3, abs=1e-4), name


@pytest.mark.parametrize("run", ["zero", "offload", "bf16"])
def test_1_first_ratios_are_exactly_one(found: dict[str, Any], run: str) -> None:
    drifts = [row["update/ratio_drift"] for row in found[run]["metrics"] if row["step"] % 2 == 1]
    assert drifts == [0.0, 0.0]


def test_kl_is_zero_before_the_first_update(found: dict[str, Any]) -> None:
    """Policy and reference compute in the same dtype, with the same rotary frequencies."""
    assert found["bf16"]["metrics"][0]["rollout/kl"] == 0.0


def test_5_a_resumed_run_is_the_run(found: dict[str, Any]) -> None:
    assert found["resumed"]["sum"] == pytest.approx(found["bf16"]["sum"], rel=1e-5)
    assert found["resumed"]["steps"] == found["bf16"]["steps"] == 4
