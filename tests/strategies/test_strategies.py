"""Every strategy against one process on the whole batch, and against its own undisturbed run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.distributed_harness import Launch
from tests.strategies.checks import CLIP, EQUALITY
from tests.strategies.toy import STEPS

pytestmark = pytest.mark.distributed


def difference(a: list[float], b: list[float]) -> float:
    return (torch.tensor(a) - torch.tensor(b)).abs().max().item()


@pytest.mark.parametrize("variant", list(EQUALITY))
def test_ranks_on_their_rows_equal_one_process_on_all(variant: str, launch: Launch, single: dict[str, Any]) -> None:
    whole = single["equality"][variant]
    for rank in launch.ranks:
        split = rank["equality"][variant]
        assert difference(split["weights"], whole["weights"]) < 1e-6
        assert split["norms"] == pytest.approx(whole["norms"], rel=1e-5)
        assert split["step"] == STEPS


def test_ranks_end_with_the_same_weights(launch: Launch) -> None:
    first, second = (rank["equality"]["clipped"]["hash"] for rank in launch.ranks)
    assert first == second


def test_the_comparison_can_fail(single: dict[str, Any]) -> None:
    equality = single["equality"]
    assert max(equality["clipped"]["norms"]) > CLIP  # clipping is active
    assert difference(equality["clipped"]["weights"], equality["unclipped"]["weights"]) > 1e-3
    assert difference(equality["clipped"]["weights"], equality["accumulated"]["weights"]) < 1e-6


def test_offloaded_optimizer_gives_the_same_weights(zero2: Launch) -> None:
    for variant in EQUALITY:
        ours, offloaded = zero2.ranks[0]["equality"][variant], zero2.ranks[0]["offload"][variant]
        assert difference(ours["weights"], offloaded["weights"]) < 1e-6


@pytest.mark.parametrize("precision", ["resume", "resume_bf16"])
def test_resume_is_bit_for_bit(precision: str, launch: Launch, single: dict[str, Any]) -> None:
    for result in [single, *launch.ranks]:
        run = result[precision]
        assert run["boundary"]["stopped_at"] == STEPS
        assert run["middle"]["stopped_at"] == STEPS + 1
        for name in ("boundary", "middle"):
            assert run[name]["step"] == 2 * STEPS
            assert run[name]["hash"] == run["straight"]


def test_bf16_leaves_the_columns_in_fp32(launch: Launch) -> None:
    assert launch.ranks[0]["resume_bf16"]["dtypes"] == ["torch.float32"]


def test_validation_works_and_needs_no_world_size(launch: Launch, single: dict[str, Any]) -> None:
    first, second = launch.ranks
    assert first["validate"] == second["validate"]
    assert first["validate_ckpt"] != first["validate"]


def test_a_full_disk_keeps_the_previous_checkpoint_and_says_so(zero2: Launch, single: dict[str, Any]) -> None:
    for result in [single, *zero2.ranks]:
        seen = result["full_disk"]
        assert "could not be written" in seen["error"]
        assert "File too large" in seen["error"]
        assert "Earlier checkpoints are untouched" in seen["error"]
        assert seen["files"] == ["last.ckpt"]
        assert seen["latest"].endswith("last.ckpt")
        # The checkpoint of step 1 is whole: from it the run ends as the one that was never disturbed.
        assert seen["resumed_hash"] == seen["run_hash"]
        assert seen["steps"] == STEPS


def test_zero_refuses_to_lose_a_gradient(zero2: Launch) -> None:
    for rank in zero2.ranks:
        assert "would overwrite the first one's gradient under ZeRO" in rank["guards"]["two_backwards"]
        assert "without a complete gradient" in rank["guards"]["no_last"]


def test_zero_says_what_to_do_with_another_kind_of_checkpoint(zero2: Launch) -> None:
    for rank in zero2.ranks:
        assert "is a single-file checkpoint, which the DeepSpeed strategies cannot resume" in rank["guards"]["file"]
        assert "There is no checkpoint at" in rank["guards"]["missing"]


def test_zero_reads_no_pickle_that_asks_for_code(zero2: Launch) -> None:
    for rank in zero2.ranks:
        assert "was refused" in rank["evil"]["evil"]
    assert "CODE RAN" not in zero2.output
