"""SFT and reward model on DDP and ZeRO-2 against one process on the whole batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed_harness import run_dist
from tests.strategies import supervised_checks
from tests.strategies.supervised_checks import CLIP

pytestmark = pytest.mark.distributed

BODY = """
    from pathlib import Path
    import lit_rlhf.strategies
    from tests.strategies import supervised_checks
    record(**supervised_checks.equality(Path({files!r}), {strategy!r}, 2, Path({out!r})))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("supervised") / "files"
    supervised_checks.write_files(folder)
    return folder


@pytest.fixture(scope="module")
def one(files: Path) -> dict[str, Any]:
    return supervised_checks.equality(files, "auto", 1, files.parent)


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2_cpu"])
def test_two_ranks_equal_one_process(files: Path, one: dict[str, Any], strategy: str) -> None:
    out = files.parent
    body = BODY.format(files=str(files), strategy=strategy, out=str(out))
    first, second = run_dist(body, out / strategy, launcher="torchrun").ranks
    assert first == second
    for kind in ("sft", "reward"):
        rows = one[kind]["rows"]
        assert len(rows) == 4
        assert max(row["update/grad_norm"] for row in rows) > CLIP, "clipping is not at work"
        for alone, split in zip(rows, first[kind]["rows"], strict=True):
            assert split == pytest.approx(alone, rel=1e-4, abs=1e-5), kind
        ours, theirs = (torch.load(out / f"{kind}-{name}.pt") for name in ("auto", strategy))
        assert max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-5, kind
