"""All callbacks at once on the library's own PPO module: the two sides of the seam fit."""

from __future__ import annotations

import json
import warnings

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
from lit_rlhf.ppo.kl_controller import FixedKL
from lit_rlhf.reports.run_data import load_run
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer, write_world


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


def test_a_quantity_has_one_name_and_is_logged_once_per_iteration(run):
    series = load_run(run).series
    ours = {"rollout/response_length_p90", "rollout/distinct_4", "rollout/prefix_share", "rollout/score_upper_tail"}
    theirs = {"rollout/kl", "rollout/kl_k3", "rollout/perplexity", "rollout/ref_perplexity", "rollout/cut_rate"}
    for name in ours | theirs | {"rollout/score", "rollout/score_std", "monitor/collapse/index"}:
        assert len(series[name]) == 3, name
    assert {name.split("/")[1] for name in series if name.startswith("monitor/")} == {"collapse", "critic_warmup"}


def test_the_monitors_would_have_said_the_same(monkeypatch, tmp_path):
    """The same run, once with the module's own numbers and once with a module that keeps them to itself."""
    world = write_world(tmp_path / "world")
    monitors = [KLMonitor, PerplexityMonitor, ResponseLengthMonitor, RewardDistributionMonitor, RepetitionMonitor]
    seen = []
    for known in (True, False):
        recorder, module = Recorder(), make_ppo(world)
        callbacks = [*(monitor() for monitor in monitors), CollapseDetector()]
        if not known:
            monkeypatch.setattr("lit_rlhf.callbacks.monitor.known_metrics", lambda module: {})
            monkeypatch.setattr("lit_rlhf.callbacks.collapse_detector.known_metrics", lambda module: {})
            module.log_values = lambda values, **kwargs: None
        trainer = make_trainer(tmp_path / str(known), callbacks=[*callbacks, recorder], max_epochs=2)
        trainer.fit(module, make_data(world, val=None))
        seen.append((recorder.metrics[-1], callbacks[-1].rule.state_dict()["_recent"]))
    (ours, judged), (theirs, rejudged) = seen
    assert len(theirs) > 12
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert judged.keys() == rejudged.keys() == {"kl", "length", "perplexity", "tail", "distinct", "variety"}
    for signal, values in judged.items():
        assert values == pytest.approx(rejudged[signal], rel=1e-5, abs=1e-6), signal


def test_without_a_reference_the_callbacks_that_can_do_without_one_do(tmp_path):
    world = write_world(tmp_path / "world")
    monitors = [KLMonitor(), PerplexityMonitor(), ResponseLengthMonitor(), RewardDistributionMonitor()]
    recorder, samples = Recorder(), SampleLogger(fixed=2, random=2)
    options = {"callbacks": [*monitors, samples, recorder], "max_epochs": 1, "num_sanity_val_steps": 1}
    trainer = make_trainer(tmp_path / "run", **options)
    trainer.fit(make_ppo(world, reference=None, kl_controller=FixedKL(0)), make_data(world))
    logged = recorder.metrics[-1]
    assert {"rollout/perplexity", "rollout/score_skew", "rollout/response_length_p90"} <= logged.keys()
    assert not [name for name in logged if name.startswith(("rollout/kl", "rollout/ref_"))]
    lines = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"fixed", "random"}
    assert all(line["kl"] is None and "kl" not in line["columns"] for line in lines)


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


@pytest.mark.parametrize(("validates", "told"), [(True, 0), (False, 1)])
def test_best_policy_says_that_it_had_no_validation_and_only_then(validates, told, tmp_path):
    """Validation may come late, and without a sanity check nothing is known of it at the start."""
    world = write_world(tmp_path / "world")
    options = {
        "check_val_every_n_epoch": 2,
        "num_sanity_val_steps": 0,
        **({} if validates else {"limit_val_batches": 0}),
    }
    best = BestPolicy(kl_bound=100.0)
    trainer = make_trainer(tmp_path / "run", callbacks=[best], max_epochs=2, enable_checkpointing=True, **options)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(make_ppo(world), make_data(world))
    assert sum("there was no validation: it kept none" in str(warning.message) for warning in said) == told
    assert bool(best.best_model_path) is validates
