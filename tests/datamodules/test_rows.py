"""Splits against a plain loop; batches, resumes and prompts from the cache against those from memory."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_rlhf.data.tokenizing import CacheConfig
from lit_rlhf.datamodules.preference import PreferenceDataModule
from lit_rlhf.datamodules.prompts import prompt_lengths
from lit_rlhf.datamodules.ptx import PTXText
from lit_rlhf.datamodules.rollout import RolloutDataModule
from lit_rlhf.datamodules.rows import StoredRows, splits
from lit_rlhf.datamodules.sft import SFTDataModule
from lit_rlhf.ppo.config import PTXConfig
from lit_rlhf.ppo.plan import BatchingConfig
from tests.data.fixtures import hh


def by_hand(groups: list[int], counts: list[int], fractions: dict[str, float], seed: int) -> dict[str, list[int]]:
    """Groups in order of appearance, shuffled, held out from the end; then the rows of their records."""
    starts = [sum(counts[:i]) for i in range(len(counts))]
    members: dict[int, list[int]] = {}
    for record, group in enumerate(groups):
        members.setdefault(group, []).append(record)
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [list(members.values())[i] for i in order]
    out: dict[str, list[int]] = {}
    for split, fraction in fractions.items():
        held: list[int] = []
        while shuffled and len(held) < round(fraction * len(groups)):
            held += shuffled.pop()
        if round(fraction * len(groups)):
            out[split] = held
    out["train"] = [record for group in shuffled for record in group]
    return {name: [starts[r] + k for r in some for k in range(counts[r])] for name, some in out.items()}


@pytest.mark.parametrize("fractions", [{"val": 0.0, "test": 0.0}, {"val": 0.3, "test": 0.1}, {"val": 0.0, "test": 0.6}])
def test_splits_are_those_of_a_plain_loop(fractions: dict[str, float]) -> None:
    chance = random.Random(3)
    for seed in range(20):
        groups = [chance.randrange(2**64) for _ in range(chance.randint(1, 9))]
        groups = [chance.choice(groups) for _ in range(chance.randint(5, 40))]
        counts = [chance.choice([0, 1, 1, 3]) for _ in groups]
        wanted = by_hand(groups, counts, fractions, seed)
        if not any(groups[i] for i in range(len(groups))) or not wanted["train"]:
            continue
        found = splits(np.array(groups, np.uint64), np.array(counts, np.int32), fractions, seed=seed)
        assert {name: index.tolist() for name, index in found.items()} == wanted


def test_nothing_left_to_train_on() -> None:
    with pytest.raises(ValueError, match="Nothing is left to train on: 2 rows, 1 distinct prompts"):
        splits(np.array([5, 5], np.uint64), np.array([1, 1], np.int32), {"val": 0.5}, seed=0)


@pytest.fixture
def path(write: Any) -> str:
    rows = [
        {
            "chosen": hh(f"Q{i // 2}" + "?" * (i % 9), "a" * (i % 5 + 1)),
            "rejected": hh(f"Q{i // 2}" + "?" * (i % 9), "b"),
        }
        for i in range(60)
    ]
    return write("pairs.jsonl", rows)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if hasattr(a, "__dict__"):
        return all(equal(x, y) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))
    return bool(a == b)


@pytest.mark.parametrize("cls", [PreferenceDataModule, SFTDataModule])
@pytest.mark.parametrize("limits", [{"batch_size": 8}, {"max_tokens": 300}])
def test_batches_and_resumes_are_those_of_memory(
    cls: Any, limits: dict[str, int], tokenizer_path: str, path: str, tmp_path: Path
) -> None:
    def ready(**cache: Any) -> Any:
        data = cls(tokenizer_path, path, template="hh", max_length=60, val_fraction=0.2, **limits, **cache)
        data.setup()
        return data

    plain, cached = ready(cache=False), ready(cache=True, cache_dir=str(tmp_path))
    assert isinstance(plain.rows["train"], list)
    assert isinstance(cached.rows["train"], StoredRows)
    assert plain.reports == cached.reports
    for split, shuffle in (("train", True), ("val", False)):
        a, b = plain.loader(split, shuffle=shuffle), cached.loader(split, shuffle=shuffle)
        for _ in range(2):
            batches = list(zip(a, b, strict=True))
            assert len(batches) > 1
            assert all(equal(x, y) for x, y in batches)
    whole = list(ready(cache=True, cache_dir=str(tmp_path)).train_dataloader())
    loader = cached.train_dataloader()
    steps = iter(loader)
    next(steps), next(steps)
    resumed = ready(cache=True, cache_dir=str(tmp_path)).train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    assert all(equal(x, y) for x, y in zip(resumed, whole[2:], strict=True))


def test_prompts_and_ptx_are_those_of_memory(tokenizer_path: str, path: str, tmp_path: Path, write: Any) -> None:
    given = write("prompts.jsonl", [{"question": f"Q{i}", "key": i} for i in range(30)])

    def ready(stage: str, **cache: Any) -> Any:
        files = {"test": given, "columns": {"prompt": "question"}, "template": "hh", "eval_limit": 7}
        data = RolloutDataModule(tokenizer_path, eval_batch_size=4, eval_samples=2, **files, **cache)
        data.setup(stage)
        return data

    plain, cached = ready("test", cache=False), ready("test", cache=True, cache_dir=str(tmp_path))
    assert isinstance(cached._prompts["test"], StoredRows)
    assert list(prompt_lengths(cached._prompts["test"])) == prompt_lengths(plain._prompts["test"])
    batches = list(zip(plain.test_dataloader(), cached.test_dataloader(), strict=True))
    assert [len(a.content.records) for a, _ in batches] == [4, 4, 4, 2]
    assert all(equal(a, b) for a, b in batches)
    assert batches[1][0].content.records[3]["lit_rlhf"] == {"row": 0, "sample": 1}
    config = PTXConfig(files=[path], template="hh", batch_ratio=0.5)
    batching = BatchingConfig(rollout_batch_size=16, minibatch_size=8)
    texts = [
        PTXText(config, plain._tokenizer, options).batches(batching, 3)
        for options in (CacheConfig(use=False), CacheConfig(use=True, folder=str(tmp_path)))
    ]
    assert [tokens for _, tokens in texts[0]] == [tokens for _, tokens in texts[1]]
    assert all(equal(a, b) for (a, _), (b, _) in zip(*texts, strict=True))
