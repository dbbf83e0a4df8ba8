"""The cache of token ids under DDP: two ranks of one run, one launch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed_harness import run_dist
from tests.modules.tiny_ppo import write_world

BODY = """
from lit_rlhf.data import tokenizing
from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer
world, root = Path({world!r}), Path({root!r})
made, into = [], tokenizing._Job.into
def counted(self, entry):
    made.append(entry.folder.name)
    into(self, entry)
tokenizing._Job.into = counted
data = make_data(world, cache=True, cache_dir=str(root / "cache"), val=None)
trainer = make_trainer(root, devices=2, strategy="ddp", max_epochs=1)
trainer.fit(make_ppo(world), data)
maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "tokens.arrow" in line]
rows = data._prompts["train"]
record(made=made, files=sorted({{(line[4], line[5]) for line in maps}}), steps=trainer.global_step,
       rows=[list(map(int, rows[i].ids)) for i in range(len(rows))])
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    root = tmp_path_factory.mktemp("shared-cache")
    world = write_world(root / "world")
    return run_dist(BODY.format(world=str(world), root=str(root)), root / "launch").ranks


@pytest.mark.distributed
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks Linux what is mapped")
def test_one_rank_tokenizes_and_both_map_its_file(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert sorted([len(first["made"]), len(second["made"])]) == [0, 1]
    assert first["files"] == second["files"]
    assert len(first["files"]) == 1
    assert first["rows"] == second["rows"]
    assert len(first["rows"]) == 32
    assert first["steps"] == second["steps"] > 0
