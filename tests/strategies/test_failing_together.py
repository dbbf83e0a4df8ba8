"""An error on one rank is every rank's error at once: nobody is left waiting in a collective."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed_harness import run_dist

pytestmark = pytest.mark.distributed

BODY = """
    from pathlib import Path
    from tests.strategies.failing_together import errors
    record(errors=errors(Path({world!r}), Path({out!r})))
"""
TOLD = "RuntimeError: Another process failed, so this one stops as well; rank {rank}: OSError: {what}"
FAULTS = {
    "load": (1, "no files"),
    "collect": (1, "no tokens"),
    "validate": (1, "no service"),
    "test": (1, "no tokens"),
    "predict": (1, "no tokens"),
    "predict, SFT": (1, "no tokens"),
    "export": (0, "no space"),
    "report": (0, "no scorer"),
}


@pytest.fixture(scope="module")
def ranks(world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("failing")
    body = BODY.format(world=str(world), out=str(folder / "out"))
    # A rank that waits for another one waits for half an hour; the limit is what would find it.
    launch = run_dist(body, folder, launcher="torchrun", timeout=240)
    assert not (folder / "out" / "predictions.jsonl").exists()
    return [rank["errors"] for rank in launch.ranks]


@pytest.mark.parametrize("name", FAULTS)
def test_the_failing_rank_says_why_and_the_others_who(name: str, ranks: list[dict[str, str]]) -> None:
    where, what = FAULTS[name]
    assert ranks[where][name] == f"OSError: {what}"
    assert ranks[1 - where][name] == TOLD.format(rank=where, what=what)
