"""Module and data module under a plain ``L.Trainer``, used the way notebooks use them."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from transformers import AutoModelForCausalLM

from tests.models.tiny import make_tokenizer, tiny_config
from tests.modules.tiny_ppo import LETTERS, Recorder, make_data, make_ppo, make_trainer


def logged(root: Path) -> list[str]:
    """The values of `rollout/score` that the CSV logger got in four iterations of two updates."""
    (path,) = root.glob("csv/version_0/metrics.csv")
    with path.open(encoding="utf-8") as file:
        return [row["rollout/score"] for row in csv.DictReader(file) if row.get("rollout/score")]


def test_every_iteration_reaches_the_loggers_under_lightnings_default(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=4, logger=CSVLogger(tmp_path, name="csv"))
    with pytest.warns(UserWarning, match=r"`log_every_n_steps` \(50\) is more than the 2 steps of an epoch"):
        trainer.fit(make_ppo(world), make_data(world))
    assert len(set(logged(tmp_path))) == 4


def test_an_interval_that_fits_into_an_epoch_is_kept(world: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=1, logger=CSVLogger(tmp_path, name="csv"), log_every_n_steps=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*log_every_n_steps.*")
        trainer.fit(make_ppo(world), make_data(world))
    assert trainer.log_every_n_steps == 2


def rollouts(world: Path, root: Path, data: Any, **options: Any) -> list[Any]:
    recorder = Recorder()
    torch.manual_seed(0)
    make_trainer(root, max_epochs=1, callbacks=[recorder], limit_val_batches=0, **options).fit(make_ppo(world), data)
    return recorder.experiences


def test_a_data_module_that_was_used_before_starts_at_the_first_iteration(world: Path, tmp_path: Path) -> None:
    data = make_data(world)
    (first,) = rollouts(world, tmp_path, data)
    (again,) = rollouts(world, tmp_path, data)
    assert torch.equal(first.prompt_ids, again.prompt_ids)
    assert torch.equal(first.response_ids, again.response_ids)


def test_a_trainer_that_goes_on_goes_on(world: Path, tmp_path: Path) -> None:
    data, module, recorder = make_data(world), make_ppo(world), Recorder()
    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=[recorder], limit_val_batches=0)
    trainer.fit(module, data)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, data)
    first, second = recorder.experiences
    assert not torch.equal(first.prompt_ids, second.prompt_ids)
    assert module.iteration == 1


def test_another_models_tokenizer_encodes_the_prompts_anew(world: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(LETTERS[::-1])
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    AutoModelForCausalLM.from_config(tiny_config("llama", len(tokenizer))).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    data = make_data(world)
    (first,) = rollouts(world, tmp_path, data)
    module = make_ppo(world, policy=str(tmp_path / "other"), reward=lambda responses: [0.0] * len(responses))
    recorder = Recorder()
    make_trainer(tmp_path, max_epochs=1, callbacks=[recorder], limit_val_batches=0).fit(module, data)
    (again,) = recorder.experiences
    assert tokenizer.decode(again.prompt_ids[0], skip_special_tokens=True) == again.records[0]["prompt"]
    assert again.records == first.records
