"""Whole runs: with vLLM every logged number is that of the transformers engine, on one rank and on two."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger

from lit_rlhf.config import AdapterConfig, ModelConfig
from lit_rlhf.rollout.engine import RolloutEngine
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from tests.distributed_harness import run_dist
from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer, write_world
from tests.vllm.worlds import vllm_engine

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), sizes=SIZES)


def metrics(world: Path, root: Path, engine: RolloutEngine, **options: Any) -> list[dict[str, str]]:
    """Every row of metrics.csv, the clock's columns left out."""
    L.seed_everything(0, verbose=False)  # fresh adapters
    sampling = SamplingConfig(max_response_length=10, temperature=0.9, top_p=0.95, repetition_penalty=1.1)
    module = make_ppo(world, engine=engine, sampling=sampling, **options)
    logger = CSVLogger(str(root), name="", version="")
    trainer = make_trainer(root, logger=logger, num_sanity_val_steps=1, log_every_n_steps=1)
    trainer.fit(module, make_data(world, ppo_epochs=2))
    with (root / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_every_number_of_a_fit_is_bit_for_bit_that_of_the_transformers_engine(world, tmp_path) -> None:
    ours = metrics(world, tmp_path / "ours", TransformersEngine())
    theirs = metrics(world, tmp_path / "theirs", vllm_engine(max_length=128, sampler_logprobs=False))
    assert len(ours) >= 8
    assert len({row["rollout/score"] for row in ours if row["rollout/score"]}) == 2
    assert ours == theirs


def test_adapters_train_alike(world, tmp_path) -> None:
    """Merged weights differ from base plus adapter by rounding, so numbers do too."""
    model = ModelConfig(adapter=AdapterConfig(r=4, alpha=8.0))
    ours = metrics(world, tmp_path / "ours", TransformersEngine(), model=model)
    theirs = metrics(world, tmp_path / "theirs", vllm_engine(max_length=128, sampler_logprobs=False), model=model)
    assert len(ours) == len(theirs) >= 8
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert bool(a[name]) == bool(b[name])
            assert not a[name] or float(a[name]) == pytest.approx(float(b[name]), rel=1e-3, abs=1e-4), name


@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2_cpu"])
def test_two_ranks_collect_what_one_does(world, tmp_path, strategy) -> None:
    """An engine on each rank, Lightning's process group still working afterwards."""
    body = f"""
        from pathlib import Path
        import lit_rlhf.strategies.cpu_deepspeed
        from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer
        from tests.vllm.worlds import vllm_engine
        from lit_rlhf.rollout.transformers_engine import TransformersEngine
        world, root = Path({str(world)!r}), Path({str(tmp_path)!r})
        for name, engine in (("ours", TransformersEngine()), ("theirs", vllm_engine(max_length=128))):
            recorder = Recorder()
            trainer = make_trainer(root / name, devices=2, strategy={strategy!r}, callbacks=[recorder])
            trainer.fit(make_ppo(world, engine=engine), make_data(world))
            record(**{{name: [e.input_ids.tolist() for e in recorder.experiences]}})
            total = torch.ones(1)
            torch.distributed.all_reduce(total)
            record(**{{name + "_sum": total.item()}})
    """
    launch = run_dist(body, tmp_path / "launch", timeout=600)  # vLLM starts on each rank
    assert len(launch.ranks) == 2
    for found in launch.ranks:
        assert len(found["theirs"]) == 2
        assert found["ours"] == found["theirs"]
        assert found["theirs_sum"] == 2.0
    assert launch.ranks[0]["theirs"] != launch.ranks[1]["theirs"]
