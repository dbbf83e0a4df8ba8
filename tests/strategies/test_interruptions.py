"""A signal at any moment, on any rank: the run ends saved, and goes on as if nothing had been, numbers and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed_harness import run_dist
from tests.strategies import interruption_checks as checks
from tests.strategies import ppo_checks

pytestmark = pytest.mark.distributed

BODY = """
    from pathlib import Path
    import lit_rlhf.strategies
    from tests.strategies import interruption_checks
    for found in interruption_checks.checks(Path({world!r}), {strategy!r}, 2, Path({out!r})):
        record(**found)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ppo_checks.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module", params=["auto", "ddp", "deepspeed_stage_2_cpu"])
def found(request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out")
    if request.param == "auto":
        moments: dict[str, Any] = {}
        for part in checks.checks(world, "auto", 1, out):
            moments |= part
        return moments
    body = BODY.format(world=str(world), strategy=request.param, out=str(out))
    launch = run_dist(body, out, launcher="torchrun", timeout=400)
    first, second = ({k: {**v, "done": None} for k, v in each.items()} for each in launch.ranks)
    assert first == second  # rank 0 alone logs what is done
    return launch.ranks[0]


def test_a_signal_loses_nothing(found: dict[str, Any]) -> None:
    assert len(found) == len(checks.MOMENTS)
    for moment, result in found.items():
        assert result["codes"] == [143, None], (moment, result)
        assert result["weights"], (moment, result)
        assert result["rows"], (moment, result)
        assert result["left"], (moment, result)


def test_it_ends_at_the_next_moment_that_can_be_saved(found: dict[str, Any]) -> None:
    done = {moment: result["done"] for moment, result in found.items()}
    # Steps and validations before the end; a validation is the fifth entry of an iteration.
    assert done == {
        "start-up 0": 0,
        "rollout 0": 0,
        "rollout 1": 5,
        "scoring 1": 5,
        "update 0": 1,
        "update 4": 6,
        "update 7": 10,
        "update 9": 12,
        "batch end 5": 7,
        "validation 0": 5,
        "epoch end 0": 5,
        "save 1": 7,
    }
