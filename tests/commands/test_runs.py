"""A run directory from the outside: what a second command finds there, and what nobody is left without a word about."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.command_line import ended, files_under, ppo_config, refused, run, write_config


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `config.yaml` and `run`: one iteration of PPO, with samples, histograms and held-out prompts."""
    folder = tmp_path_factory.mktemp("finished")
    config = ppo_config(world, folder / "run")
    names = ("SampleLogger", "RewardDistributionMonitor", "CollapseDetector")
    config["trainer"] |= {"max_epochs": 1, "callbacks": [{"class_path": name} for name in names]}
    config["data"]["init_args"]["val"] = str(world / "prompts.jsonl")
    run("fit", "--config", write_config(folder / "config.yaml", config))
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in files_under(folder)}


def words(folder: Path) -> list[str]:
    return ["--config", str(folder / "config.yaml")]


def test_the_end_says_where_the_model_is_and_the_versions_are_kept(finished: Path, capsys) -> None:
    versions = json.loads((finished / "run" / "versions.json").read_text())
    assert {"python", "torch", "lightning", "transformers", "lit-rlhf"} <= versions.keys()
    found = ended(capsys, "fit", *words(finished), "--trainer.default_root_dir", str(finished / "other"))
    assert f"model: {finished / 'other' / 'export' / 'final'}\n" in found.out


def test_a_second_fit_does_not_overwrite_the_first(finished: Path, capsys) -> None:
    before = contents(finished / "run")
    line = refused(capsys, "fit", *words(finished))
    assert "holds an earlier run (checkpoints/epoch=0-step=2.ckpt)" in line
    assert "`--ckpt_path last`" in line
    assert contents(finished / "run") == before


def test_an_export_without_checkpoints_is_not_overwritten_either(finished: Path, world: Path, tmp_path, capsys) -> None:
    (tmp_path / "run" / "export" / "final").mkdir(parents=True)
    config = write_config(tmp_path / "config.yaml", ppo_config(world, tmp_path / "run"))
    assert "(export/final)" in refused(capsys, "fit", "--config", config)


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_a_trial_run_leaves_no_trace(verb: str, finished: Path, world: Path, capsys) -> None:
    before = contents(finished / "run")
    prompts = str(world / "prompts.jsonl")
    data = [f"--data.test={prompts}", f"--data.predict={prompts}", "--trainer.fast_dev_run", "true"]
    assert ended(capsys, verb, *words(finished), *data).code == 0
    assert contents(finished / "run") == before


def test_a_finished_run_says_that_it_is(finished: Path, capsys) -> None:
    found = ended(capsys, "fit", *words(finished), "--ckpt_path", "last")
    assert found.code == 0
    assert "nothing left to train: the checkpoint is at epoch 1, step 2; max_epochs is 1" in found.out


@pytest.mark.parametrize("option", ["--lr_scheduler", "--optimizer"])
def test_options_that_would_do_nothing_are_not_taken(option: str, finished: Path, capsys) -> None:
    assert option in refused(capsys, "fit", *words(finished), option, "StepLR")


@pytest.mark.parametrize("key", ["optimizer", "lr_scheduler"])
def test_nor_are_keys(key: str, finished: Path, tmp_path: Path, capsys) -> None:
    other = write_config(tmp_path / "other.yaml", {key: {"class_path": "torch.optim.SGD"}})
    assert f"'{key}' is not accepted" in refused(capsys, "fit", *words(finished), "--config", other)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "ab", "chosen": c * 3, "rejected": "h"} for c in "abcd"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def reward_config(world: Path, root: Path, pairs: str) -> dict[str, Any]:
    config = ppo_config(world, root)
    config["model"] = {"class_path": "RewardModelModule", "init_args": {"model_path": str(world / "policy")}}
    files = dict.fromkeys(("train", "val", "test"), pairs)
    config["data"] = {"class_path": "PreferenceDataModule", "init_args": {**files, "max_length": 32, "batch_size": 2}}
    return config


@pytest.mark.parametrize("verb", ["test", "validate", "predict"])
def test_an_untrained_head_is_not_evaluated(verb: str, world: Path, pairs: str, tmp_path: Path, capsys) -> None:
    config = write_config(tmp_path / "config.yaml", reward_config(world, tmp_path / "run", pairs))
    line = refused(capsys, verb, "--config", config)
    assert "`head: fresh` is an untrained head" in line
    assert "--ckpt_path last" in line
    assert not [name for name in files_under(tmp_path) if "report" in name or "predictions" in name]


def test_a_trained_head_is(world: Path, pairs: str, tmp_path: Path, capsys) -> None:
    config = write_config(tmp_path / "config.yaml", reward_config(world, tmp_path / "run", pairs))
    fitted = ended(capsys, "fit", "--config", config, "--trainer.max_epochs", "1")
    assert fitted.code == 0  # with validation inside it
    assert ended(capsys, "test", "--config", config, "--ckpt_path", "last").code == 0
    exported = [f"--model.model_path={tmp_path / 'run' / 'export' / 'final'}", "--model.head=load", "--model.lm_coef=0"]
    assert ended(capsys, "test", "--config", config, *exported).code == 0


def test_resuming_with_another_reference_is_refused(finished: Path, world: Path, tmp_path: Path, capsys) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = AutoModelForCausalLM.from_pretrained(world / "policy")
    other.lm_head.weight.data.add_(1.0)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(world / "policy").save_pretrained(tmp_path / "other")
    resume = ["fit", *words(finished), "--ckpt_path", "last", "--trainer.max_epochs", "2"]
    line = refused(capsys, *resume, "--model.policy", str(tmp_path / "other"))
    assert f"`reference` ('{tmp_path / 'other'}') is not the model that the run's KL was measured against" in line


def test_resuming_with_another_policy_is_told(finished: Path, world: Path, tmp_path: Path) -> None:
    saved = yaml.safe_load((finished / "config.yaml").read_text())
    saved["model"]["init_args"] |= {"reference": str(world / "policy")}
    copied = shutil.copytree(world / "policy", tmp_path / "copied")
    config = write_config(tmp_path / "config.yaml", saved)
    checkpoint = str(finished / "run" / "checkpoints" / "last.ckpt")
    resume = ["fit", "--config", config, "--ckpt_path", checkpoint, "--trainer.max_epochs=1"]
    root = f"--trainer.default_root_dir={tmp_path / 'run'}"
    with pytest.warns(UserWarning, match=f"resumed with '{copied}': its weights come from the checkpoint"):
        run(*resume, root, "--model.policy", str(copied))


def test_resuming_on_a_cpu_that_multiplies_otherwise_is_told(finished: Path, tmp_path: Path, monkeypatch) -> None:
    checkpoint = str(finished / "run" / "checkpoints" / "last.ckpt")
    before = torch.load(checkpoint, weights_only=True)["lit_rlhf"]["cpu_products"]
    other = {"torch": "onednn", "onednn": "torch"}[before]
    monkeypatch.setattr("lit_rlhf.models.cpu.kernels.prefers_onednn", lambda: other == "onednn")
    resume = ["fit", *words(finished), "--ckpt_path", checkpoint, f"--trainer.default_root_dir={tmp_path}"]
    with pytest.warns(UserWarning, match=f"through {before} when .* and go through {other} here"):
        run(*resume, "--trainer.max_epochs=1")


def test_resuming_in_another_precision_is_told(finished: Path, tmp_path: Path, monkeypatch) -> None:
    """As `precision: auto` does on a machine of another kind, here one whose CPU has bf16 products."""
    checkpoint = str(finished / "run" / "checkpoints" / "last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["lit_rlhf"]["precision"] == "32-true"
    monkeypatch.setattr("lit_rlhf.commands.trainer.cpu_says_bf16", lambda: True)
    resume = ["fit", *words(finished), "--ckpt_path", checkpoint, f"--trainer.default_root_dir={tmp_path}"]
    told = r"in 32-true when the checkpoint was written and goes on in bf16-mixed: .*--trainer\.precision=32-true"
    with pytest.warns(UserWarning, match=told):
        run(*resume, "--trainer.max_epochs=1", "--trainer.precision=auto", "--trainer.accelerator=cpu")


def test_resuming_with_other_sizes_is_told(finished: Path, tmp_path: Path) -> None:
    checkpoint = str(finished / "run" / "checkpoints" / "last.ckpt")
    resume = ["fit", *words(finished), "--ckpt_path", checkpoint, f"--trainer.default_root_dir={tmp_path}"]
    with pytest.warns(UserWarning, match="`rollout_batch_size` 8 -> 16"):
        run(*resume, "--trainer.max_epochs=2", "--data.rollout_batch_size=16")
