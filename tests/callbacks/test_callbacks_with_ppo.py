"""All callbacks at once on the library's own PPO module: the two sides of the seam fit."""

from __future__ import annotations

import json

import pytest
from lightning.pytorch.loggers import CSVLogger

from lit_rlhf.callbacks import (
    BestPolicy,
    CollapseDetector,
    CriticWarmup,
    ExportCallback,
    KLMonitor,
    PerplexityMonitor,
    RepetitionMonitor,
    ResponseLengthMonitor,
    RewardDistributionMonitor,
    RLHFProgressBar,
    SampleLogger,
)
from lit_rlhf.reports.run_data import load_run
from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer, write_world


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    world = write_world(tmp_path_factory.mktemp("world"))
    root = world / "run"
    callbacks = [
        KLMonitor(),
        PerplexityMonitor(),
        ResponseLengthMonitor(),
        RewardDistributionMonitor(),
        RepetitionMonitor(),
        SampleLogger(fixed=3, random=2, every_n_iterations=1),
        CollapseDetector(),
        CriticWarmup(iterations=1),
        RLHFProgressBar(plain=True),
        BestPolicy(kl_bound=100.0),
        ExportCallback(best=True),
    ]
    trainer = make_trainer(
        root,
        max_epochs=3,
        callbacks=callbacks,
        logger=CSVLogger(str(root), name="csv"),
        enable_checkpointing=True,
        enable_progress_bar=True,
        num_sanity_val_steps=1,
        log_every_n_steps=1,
    )
    trainer.fit(make_ppo(world), make_data(world))
    return root


def test_the_monitors_agree_with_the_modules_own_metrics(run):
    series = load_run(run).series
    pairs = {
        "monitor/kl/k1": "rollout/kl",
        "monitor/kl/k3": "rollout/kl_k3",
        "monitor/kl/sequence": "rollout/kl_sequence",
        "monitor/perplexity/policy": "rollout/perplexity",
        "monitor/perplexity/reference": "rollout/ref_perplexity",
        "monitor/length/mean": "rollout/response_length",
        "monitor/length/cut": "rollout/cut_rate",
        "monitor/reward_distribution/mean": "rollout/score",
    }
    for ours, theirs in pairs.items():
        assert len(series[ours]) == 3
        for (at, a), (also, b) in zip(series[ours], series[theirs], strict=True):
            assert at == also
            assert a == pytest.approx(b, rel=1e-5, abs=1e-6), ours


def test_samples_begin_with_the_sft_model_and_hold_every_column(run):
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    first = samples[:3]
    assert [(s["kind"], s["step"], s["index"]) for s in first] == [("fixed", 0, k) for k in range(3)]
    assert all(abs(s["kl"]) < 1e-5 for s in first)  # before the first update policy and reference are one
    drawn = [s for s in samples if s["kind"] == "random"]
    assert set(drawn[0]["columns"]) == {"logprob", "ref_logprob", "kl", "advantage", "value", "reward"}
    assert all(len(column) == len(s["tokens"]) for s in samples for column in s["columns"].values())
    assert all(s["prompt"].endswith("a:") for s in samples)
    assert set(first[0]["columns"]) == {"logprob", "ref_logprob", "kl"}


def test_the_policy_was_held_and_exported(run):
    series = dict(load_run(run).series["monitor/critic_warmup/active"])
    assert series == {0: 1.0, 1: 0.0, 2: 0.0}
    kl = dict(load_run(run).series["rollout/kl"])
    assert kl[1] == kl[0] == 0.0
    assert kl[2] != 0.0
    assert (run / "export" / "final" / "model.safetensors").is_file()
    assert (run / "export" / "best" / "model.safetensors").is_file()
