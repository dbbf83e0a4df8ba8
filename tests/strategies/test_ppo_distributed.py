"""The real PPO module on one process, DDP and ZeRO-2: the same run, resumed bit for bit, ratios that start at 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed_harness import run_dist
from tests.strategies import ppo_checks
from tests.strategies.ppo_checks import CLIP, ITERATIONS, STEPS

pytestmark = pytest.mark.distributed

BODY = """
    from pathlib import Path
    import lit_rlhf.strategies
    from tests.strategies import ppo_checks
    for found in ppo_checks.checks(Path({world!r}), {strategy!r}, 2, Path({out!r})):
        record(**found)
"""
DISTRIBUTED = {"ddp": "ddp", "zero2": "deepspeed_stage_2_cpu"}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ppo_checks.make_adapters(ppo_checks.make_world(tmp_path_factory.mktemp("world")))


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="session")
def one(world: Path, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in ppo_checks.checks(world, "auto", 1, out):
        found |= part
    return found


@pytest.fixture(scope="session", params=list(DISTRIBUTED))
def two(request: pytest.FixtureRequest, world: Path, out: Path) -> dict[str, Any]:
    strategy = DISTRIBUTED[request.param]
    body = BODY.format(world=str(world), strategy=strategy, out=str(out))
    launch = run_dist(body, out / request.param, launcher="torchrun", timeout=400)
    assert launch.ranks[0] == launch.ranks[1]
    return {**launch.ranks[0], "strategy": strategy}


def test_the_run_exercises_every_term(one: dict[str, Any]) -> None:
    rows = one["equality"]["rows"]
    assert len(rows) == ITERATIONS * STEPS
    assert any(row["update/clip_fraction"] > 0.1 for row in rows)
    assert any(row["update/value_clip_fraction"] > 0.05 for row in rows)
    assert all(row["loss/ptx"] > 0 for row in rows)
    assert any(row["update/grad_norm"] > CLIP for row in rows)


def test_two_ranks_equal_one_process(one: dict[str, Any], two: dict[str, Any], out: Path) -> None:
    for alone, split in zip(one["equality"]["rows"], two["equality"]["rows"], strict=True):
        assert alone.keys() == split.keys()
        for name, value in alone.items():
            if name != "update/ratio_drift":
                assert split[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name
    ours, theirs = (torch.load(out / f"{name}.pt") for name in ("auto", two["strategy"]))
    assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 2e-5


def test_two_ranks_win_as_often_as_one_process(one: dict[str, Any], two: dict[str, Any]) -> None:
    """`val/win_rate` against saved answers, and the other means, of 13 prompts that ranks share unequally."""
    rates = one["equality"]["rates"]
    assert len(rates) == ITERATIONS
    assert 0 < rates[0]["val/win_rate"] != rates[1]["val/win_rate"] < 1
    assert rates[1]["val/tie_rate"] > 0
    for alone, split in zip(rates, two["equality"]["rates"], strict=True):
        assert split == pytest.approx(alone, rel=2e-4, abs=2e-5)


def test_a_judge_that_fails_ends_all_ranks_alike(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert "this run's answers, row 1: `score` (nothing) is not among its numbers" in one["judge_fails"]
    assert two["judge_fails"] == one["judge_fails"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_ratios_start_at_one_exactly(precision: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    for found in (one, two):
        rows = found["equality"]["rows"][::STEPS] if precision == "fp32" else found["first_bf16"]
        assert [row["update/ratio_drift"] for row in rows] == [0.0] * ITERATIONS
        # The reference is the policy, in the policy's dtype.
        assert rows[0]["rollout/kl"] == 0.0 != rows[1]["rollout/kl"]


def test_resume_is_bit_for_bit(one: dict[str, Any], two: dict[str, Any]) -> None:
    for found in (one, two):
        hashes = found["resume"]
        assert len(hashes) == 7
        assert {name: h for name, h in hashes.items() if h != hashes["straight"]} == {}


class TestAdapters:
    """Policy, reference, critic and reward as adapters on one base."""

    def test_two_ranks_equal_one_process(self, one: dict[str, Any], two: dict[str, Any], out: Path) -> None:
        for alone, split in zip(one["adapters"]["rows"], two["adapters"]["rows"], strict=True):
            for name, value in alone.items():
                if name != "update/ratio_drift":
                    assert split[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name
        assert any(row["update/grad_norm"] > CLIP for row in one["adapters"]["rows"])
        ours, theirs = (torch.load(out / f"adapters-{name}.pt") for name in ("auto", two["strategy"]))
        assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 2e-5

    @pytest.mark.parametrize("kind", ["fp32", "bf16", "nf4"])
    def test_ratios_start_at_one_and_kl_at_zero_and_frozen_bits_stay(
        self, one: dict[str, Any], two: dict[str, Any], kind: str
    ) -> None:
        skip_without(kind)
        for found in (part["adapters"][kind] for part in (one, two)):
            assert found["ratios"] == [0.0] * ITERATIONS
            assert found["first_kl"] == 0.0
            assert found["last_kl"] > 0.01
            assert found["frozen"] == 1

    @pytest.mark.parametrize("kind", ["bf16", "nf4"])
    def test_resume_is_bit_for_bit_from_adapters_alone(
        self, one: dict[str, Any], two: dict[str, Any], kind: str
    ) -> None:
        skip_without(kind)
        for found in (one["adapters"]["resume"][kind], two["adapters"]["resume"][kind]):
            assert found["hashes"][0] == found["hashes"][1]
            # Weights, two moments, ZeRO's masters, and the experience of the iteration under way.
            assert found["bytes"] < 4 * 4 * found["trained"] + 400_000
            assert kind == "nf4" or 4 * 4 * found["trained"] + 400_000 < 4 * found["all"]


def skip_without(kind: str) -> None:
    """QLoRA needs bitsandbytes."""
    if kind == "nf4":
        pytest.importorskip("bitsandbytes")
