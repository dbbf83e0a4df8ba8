"""SFT and reward model on DDP and ZeRO-2 against one process on the whole batches, and updates that are not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed_harness import run_dist
from tests.strategies import supervised_checks
from tests.strategies.supervised_checks import ADAPTED, CLIP, KINDS

pytestmark = pytest.mark.distributed

BODY = """
    from pathlib import Path
    import lit_rlhf.strategies
    from tests.strategies import supervised_checks
    files, out, strategy = Path({files!r}), Path({out!r}), {strategy!r}
    record(**supervised_checks.equality(files, strategy, 2, out))
    record(faults=supervised_checks.faults(files, strategy, 2, out / strategy / "faults"))
    if strategy != "ddp":
        def offloading():
            return lit_rlhf.strategies.CPUZeroStrategy(offload_optimizer=True)
        record(offload_faults=supervised_checks.faults(files, offloading, 2, out / strategy / "offload_faults"))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supervised") / "files"
    supervised_checks.write_files(folder)
    return folder


@pytest.fixture(scope="module")
def one(files: Path) -> dict[str, Any]:
    faults = supervised_checks.faults(files, "auto", 1, files.parent / "faults")
    return {**supervised_checks.equality(files, "auto", 1, files.parent), "faults": faults}


@pytest.fixture(scope="module", params=["ddp", "deepspeed_stage_2_cpu"])
def two(request: pytest.FixtureRequest, files: Path) -> dict[str, Any]:
    body = BODY.format(files=str(files), strategy=request.param, out=str(files.parent))
    first, second = run_dist(body, files.parent / request.param, launcher="torchrun").ranks
    assert first == second
    return {**first, "strategy": request.param}


def test_two_ranks_equal_one_process(files: Path, one: dict[str, Any], two: dict[str, Any]) -> None:
    for kind in KINDS:
        rows = one[kind]["rows"]
        assert len(rows) == 4
        assert max(row["update/grad_norm"] for row in rows) > CLIP, "clipping is not at work"
        for alone, split in zip(rows, two[kind]["rows"], strict=True):
            assert split == pytest.approx(alone, rel=1e-4, abs=1e-5), kind
        assert (one[kind]["trained"] < one[kind]["all"]) == (kind in ADAPTED)
        ours, theirs = (torch.load(files.parent / f"{kind}-{name}.pt") for name in ("auto", two["strategy"]))
        assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-5, kind


def test_an_update_that_is_not_finite_leaves_no_trace_or_stops(one: dict[str, Any], two: dict[str, Any]) -> None:
    for found in [one["faults"], two["faults"], *([two["offload_faults"]] if "offload_faults" in two else [])]:
        left_out = found["left out, skip"]
        assert (left_out["steps"], found[", skip"]["steps"]) == (3, 4)
        assert left_out["hash"] != found[", skip"]["hash"]
        for fault, name in (("loss", "loss"), ("gradient", "gradient norm")):
            skipped, stopped = found[f"{fault}, skip"], found[f"{fault}, stop"]
            assert skipped == {**left_out, "skipped": 1}
            assert stopped["steps"] == 1
            assert stopped["error"].startswith(f"step 1: {name} is not finite. ")
