"""RewardModelModule: learns a ranking in seconds, its loss term by term, resume, margin, report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForSequenceClassification

from lit_rlhf.config import OptimizerConfig, ScheduleConfig
from lit_rlhf.datamodules.preference import PreferenceDataModule
from lit_rlhf.modules.reward_model import RewardModelModule
from tests.modules.tiny_ppo import LETTERS, Recorder, make_trainer, same, weights


def write_pairs(path: Path, *, count: int = 24, margin: float | None = None) -> Path:
    """The response that holds an ``a`` is the better one; prompts are all different."""
    rows = []
    for i in range(count):
        prompt = LETTERS[i % 8] + LETTERS[(i // 8) % 8] + LETTERS[(5 * i) % 8]
        row = {"prompt": prompt, "chosen": "a" * (1 + i % 3) + "c", "rejected": "b" * (1 + i % 2) + "c"}
        rows.append(row if margin is None else {**row, "margin": margin})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


def make_module(world: Path, **options) -> RewardModelModule:
    torch.manual_seed(0)  # the fresh head is drawn from the global generator
    defaults = {
        "model_path": str(world / "policy"),
        "optimizer": OptimizerConfig(lr=5e-3),
        "schedule": ScheduleConfig(kind="constant", warmup=0),
        "lm_coef": 0.5,
    }
    module = RewardModelModule(**{**defaults, **options})
    module.configure_model()
    return module


def make_data(path: Path, **options) -> PreferenceDataModule:
    return PreferenceDataModule(**{"train": str(path), "batch_size": 8, "max_length": 32, **options})


def fit(module: RewardModelModule, data: PreferenceDataModule, root: Path, **options) -> list[dict[str, float]]:
    recorder = Recorder()
    callbacks = [recorder, *options.pop("callbacks", [])]
    make_trainer(root, callbacks=callbacks, limit_val_batches=options.pop("limit_val_batches", 0), **options).fit(
        module, data
    )
    return recorder.metrics


def test_learns_which_response_is_better(world, pairs, tmp_path) -> None:
    module = make_module(world)
    data = make_data(pairs, val=str(pairs))
    metrics = fit(module, data, tmp_path, max_epochs=12, limit_val_batches=1.0, check_val_every_n_epoch=12)
    assert metrics[-1]["train/accuracy"] == 1.0
    assert metrics[-1]["loss/ranking"] < 0.5 * metrics[0]["loss/ranking"]
    assert metrics[-1]["loss/lm"] < metrics[0]["loss/lm"]
    assert metrics[-1]["train/score_gap"] > 0.5


def test_loss_term_by_term(world, tmp_path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", count=8, margin=0.3)
    module, data = make_module(world, optimizer=OptimizerConfig(lr=0.0)), make_data(path)
    (first, *_) = fit(module, data, tmp_path, max_steps=1, max_epochs=-1)
    model, ranking, nll, tokens, right = module.reward_model.eval(), 0.0, 0.0, 0, 0
    for row in data.rows["train"]:
        scores = []
        for response in (row.chosen, row.rejected):
            ids = torch.cat([row.prompt, response]).long()
            with torch.no_grad():
                scores.append(float(model(ids[None])[0, -1]))
                hidden = model.hidden(ids[None])[0]
                logprobs = model.lm_project(hidden).log_softmax(-1)
            if response is row.chosen:
                for at in range(len(row.prompt), len(ids)):
                    nll, tokens = nll - float(logprobs[at - 1, ids[at]]), tokens + 1
        ranking += math.log1p(math.exp(-(scores[0] - scores[1] - 0.3)))
        right += scores[0] > scores[1]
    assert first["loss/ranking"] == pytest.approx(ranking / 8, rel=1e-5)
    assert first["loss/lm"] == pytest.approx(nll / tokens, rel=1e-5)
    assert first["train/accuracy"] == right / 8


def test_a_margin_makes_the_gap_wider(world, tmp_path) -> None:
    gaps = {}
    for margin in (0.0, 3.0):
        path = write_pairs(tmp_path / f"{margin}.jsonl", margin=margin)
        metrics = fit(make_module(world, lm_coef=0.0), make_data(path), tmp_path, max_epochs=10)
        gaps[margin] = metrics[-1]["train/score_gap"]
    assert gaps[3.0] > gaps[0.0] + 0.5, gaps


@pytest.mark.parametrize("lm_coef", [0.0, 0.5])
def test_micro_batching_does_not_change_the_update(world, pairs, tmp_path, lm_coef) -> None:
    results = []
    for budget in (20, 100_000):
        module = make_module(world, micro_batch_tokens=budget, lm_coef=lm_coef)
        fit(module, make_data(pairs), tmp_path, max_steps=3, max_epochs=-1)
        results.append(weights(module))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("stop", [3, 4], ids=["between epochs", "in the middle of an epoch"])
def test_resume_is_bit_for_bit(world, pairs, tmp_path, stop) -> None:
    straight, half, resumed = (make_module(world) for _ in range(3))
    fit(straight, make_data(pairs), tmp_path, max_epochs=3)
    saver = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=stop)
    fit(
        half, make_data(pairs), tmp_path, max_epochs=-1, max_steps=stop, enable_checkpointing=True, callbacks=[saver]
    )  # fmt: skip
    make_trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(
        resumed, make_data(pairs), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True
    )
    assert not same(weights(half), weights(straight))
    assert same(weights(resumed), weights(straight))


def test_validation_test_and_predict_agree_and_the_report_is_written(world, pairs, tmp_path) -> None:
    module = make_module(world)
    data = make_data(pairs, val=str(pairs), test=str(pairs))
    fit(module, data, tmp_path / "fit", max_steps=1, max_epochs=-1)  # an untrained head's scores are refused
    val = make_trainer(tmp_path).validate(module, data, verbose=False)[0]
    assert val["val/accuracy_low"] <= val["val/accuracy"] <= val["val/accuracy_high"]
    rows = [row for batch in make_trainer(tmp_path).predict(module, data) for row in batch]
    assert len(rows) == 24
    assert [row["record"]["chosen"] for row in rows[:2]] == ["ac", "aac"]
    assert rows[0]["chosen_tokens"] == 3, "two letters and EOS"
    mean = sum((r["chosen"] > r["rejected"]) + 0.5 * (r["chosen"] == r["rejected"]) for r in rows) / 24
    assert val["val/accuracy"] == pytest.approx(mean)
    test = make_trainer(tmp_path / "test").test(module, data, verbose=False)[0]
    assert any(name.startswith("test/") for name in test)
    report = json.loads((tmp_path / "test" / "reward_report.json").read_text())
    assert report["pairs"] == 24
    assert "<html" in (tmp_path / "test" / "reward_report.html").read_text().lower()


def test_export_gives_the_same_scores_in_transformers(world, pairs, tmp_path) -> None:
    module = make_module(world)
    data = make_data(pairs)
    fit(module, data, tmp_path, max_steps=2, max_epochs=-1)
    module.export(tmp_path / "export")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    ids = torch.cat([data.rows["train"][0].prompt, data.rows["train"][0].chosen]).long()
    with torch.no_grad():
        score = float(module.reward_model.eval()(ids[None])[0, -1])
        assert float(model(ids[None]).logits) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lm_coef": -1.0}, r"`lm_coef` \(-1.0\) must not be negative"),
        ({"head": "load"}, "`head: load` starts from a reward model"),
        ({"micro_batch_tokens": 0}, "`micro_batch_tokens`"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_construction(world, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        RewardModelModule(str(world / "policy"), **options)
