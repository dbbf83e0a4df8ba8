"""The library on a second device that is not there: what CUDA would refuse, and where its host would wait.

``tests/pretend_device.py`` says what the device is, ``tests/pretend_runs.py`` what runs on it. It is made in a process
of its own, for torch reports an accelerator afterwards.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed_harness import run_dist
from tests.pretend_runs import CASES

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no devices in Python",
)

BODY = """
    import logging, warnings
    from pathlib import Path
    from tests import pretend_runs as runs
    for name in ("lightning.pytorch", "lightning.fabric", "lit_rlhf"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    world, out = Path({world!r}), Path({out!r})
    record(refusals=runs.refusals(), counts=runs.counts(), cases=runs.compare(world, out))
    def waiting(name, **options):
        return runs.waiting(world, out / name, **options)
    record(
        short=waiting("short", steps=8, drop_every=4),
        long=waiting("long", steps=24, drop_every=4),
        nucleus=waiting("nucleus", steps=24, drop_every=4, top_p=0.9),
        ptx=waiting("ptx", steps=8, drop_every=4, with_ptx=True),
    )
"""

ROUNDING = 5e-6
"""The device's rows have padding, the CPU's have none. What that leaves of a kurtosis or an explained variance, ratios
of small numbers, is 2e-6 on one maker's CPU and under 1e-6 on another's."""
LOOK = 1
"""Waits of a look at finished rows, every ``drop_every`` steps. A decode step waits for nothing else, top-p or not."""
MICRO_BATCH = 6
"""Waits of a micro-batch's losses: its rows to the device (2), their lengths and the number of response tokens back to
the host (2), and one in transformers' mask for the policy and for the critic each."""
PTX = 4
"""Further waits of a micro-batch with text: rows (1), its learned tokens (2), transformers' mask (1)."""
SCORED_MICRO_BATCH = 6
"""Waits of a scored micro-batch: its rows (1), lengths and number of tokens (2), transformers' mask thrice (3)."""
ONCE = 25
"""Waits of a rollout's scoring besides: texts for the reward, its forward passes, its scores."""


@pytest.fixture(scope="module")
def found(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("pretend")
    body = BODY.format(world=str(world), out=str(folder / "out"))
    return run_dist(body, folder, processes=1, timeout=500).ranks[0]


@pytest.mark.parametrize("name", CASES)
def test_equals_the_cpu(name: str, found: dict[str, Any]) -> None:
    case = found["cases"][name]
    assert case["error"] is None, case
    assert case["largest"] < ROUNDING, case
    assert case["count"] > 1000


def test_it_refuses_what_cuda_refuses(found: dict[str, Any]) -> None:
    said = found["refusals"]
    allowed = {name for name, message in said.items() if not message}
    assert allowed == {"a number from the CPU", "CPU index into the device", "a copy"}
    assert "all tensors to be on the same device" in said["two devices"]


def test_it_counts_what_a_host_waits_for(found: dict[str, Any]) -> None:
    free = {"arithmetic", "to the device, not waiting", "masked fill", "filled by mask", "where"}
    assert found["counts"] == {name: int(name not in free) for name in found["counts"]}


def steps(found: dict[str, Any], name: str) -> dict[str, int]:
    """Waits of the 16 decode steps by which the long rollout is longer, by place."""
    short, long = found["short"]["generate"], found[name]["generate"]
    return {place: long[place] - short.get(place, 0) for place in long if long[place] > short.get(place, 0)}


def test_decode_steps_wait_no_more_than_stated(found: dict[str, Any]) -> None:
    plain, nucleus = steps(found, "long"), steps(found, "nucleus")
    assert 1 <= sum(plain.values()) <= 4 * LOOK, plain
    assert 1 <= sum(nucleus.values()) <= 4 * LOOK, nucleus


def test_micro_batches_wait_no_more_than_stated(found: dict[str, Any]) -> None:
    assert sum(found["short"]["update"].values()) <= MICRO_BATCH, found["short"]["update"]
    assert sum(found["ptx"]["update"].values()) <= MICRO_BATCH + PTX, found["ptx"]["update"]


def test_scoring_waits_no_more_than_stated(found: dict[str, Any]) -> None:
    for name in ("short", "long"):
        score, micro_batches = found[name]["score"], found[name]["scored"]
        assert micro_batches >= 4
        assert sum(score.values()) <= micro_batches * SCORED_MICRO_BATCH + ONCE, score
