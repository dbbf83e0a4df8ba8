"""SFT, reward model and PPO as adapters on one base through the command line, and what is exported of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.scalar import load_scalar_model
from tests.command_line import refused, run
from tests.test_configs import CONFIGS, pocket  # noqa: F401

peft = pytest.importorskip("peft")

ADAPTER = ["--model.model.adapter.r", "2", "--model.model.adapter.target_modules", "all-linear"]
IDS = torch.arange(5, 17)[None]


def fit(name: str, root: Path, *words: str) -> Path:
    """Two steps of ``configs/pocket/NAME.yaml`` with an adapter; the adapter's folder."""
    small = ["--trainer.max_steps", "2", "--trainer.max_epochs", "-1", "--trainer.limit_val_batches", "0"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    place = ["--trainer.default_root_dir", str(root / name)]
    run("fit", "--config", str(CONFIGS / "pocket" / f"{name}.yaml"), *small, *quiet, *place, *ADAPTER, *words)
    return root / name / "export" / "final"


@pytest.fixture(scope="module")
def chain(pocket: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811
    root = tmp_path_factory.mktemp("chain")
    rate = ["--model.optimizer.lr", "0.02"]
    sft = fit("sft", root, *rate, "--model.policy", str(pocket / "policy"), "--data.train", str(pocket / "sft.jsonl"))
    pairs = str(pocket / "preferences_train.jsonl")
    files = [f"--data.{split}={pairs}" for split in ("train", "val", "test")]
    reward = fit("reward", root, *rate, "--model.model_path", str(sft), *files)
    prompts = str(pocket / "prompts_train.jsonl")
    files = [f"--data.{split}={prompts}" for split in ("train", "val", "test")]
    sizes = [
        "--data.rollout_batch_size",
        "16",
        "--data.minibatch_size",
        "8",
        "--model.sampling.max_response_length",
        "8",
    ]
    models = ["--model.policy", str(sft), "--model.reward.path", str(reward)]
    ppo = fit("ppo_max", root, *models, *files, *sizes, "--model.optimizer.critic_lr", "0.02")
    return {"base": pocket / "policy", "sft": sft, "reward": reward, "ppo": ppo, "root": root, "pocket": pocket}


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def test_each_stage_is_an_adapter_on_the_first_base(chain: dict[str, Path]) -> None:
    for name in ("sft", "reward", "ppo"):
        stored = json.loads((chain[name] / "adapter_config.json").read_text())
        assert stored["base_model_name_or_path"] == str(chain["base"]), name
        assert not (chain[name] / "model.safetensors").exists()
    assert (chain["reward"] / "fingerprint.json").is_file()
    found = [logits(load_causal_lm(chain[name])) for name in ("base", "sft")]
    assert not torch.allclose(*found, atol=1e-4)


def test_the_checkpoint_gives_the_folder_and_a_merged_model(chain: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    checkpoint = str(chain["root"] / "ppo_max" / "checkpoints" / "last.ckpt")
    run("export", checkpoint, str(tmp_path / "adapter"))
    run("export", checkpoint, str(tmp_path / "merged"), "--merge")
    run("export", str(chain["ppo"]), str(tmp_path / "folder"), "--merge")
    wanted = logits(peft.AutoPeftModelForCausalLM.from_pretrained(chain["ppo"]))
    assert torch.equal(logits(peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), wanted)
    for name in ("merged", "folder"):
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / name)), wanted)
    run("export", checkpoint, str(tmp_path / "critic"), "--part", "critic", "--merge")
    critic = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic").eval()
    run("export", checkpoint, str(tmp_path / "critic_adapter"), "--part", "critic")
    own = load_scalar_model(tmp_path / "critic_adapter", head="load").eval()
    with torch.no_grad():
        torch.testing.assert_close(critic(IDS).logits, own(IDS)[:, -1:])
    before = load_scalar_model(chain["reward"], head="load").eval()
    assert not torch.allclose(own(IDS), before(IDS), atol=1e-4), "the critic that was trained"


def test_reward_models_are_exported_too(chain: dict[str, Path], tmp_path: Path) -> None:
    run("export", str(chain["root"] / "reward" / "checkpoints" / "last.ckpt"), str(tmp_path / "out"))
    run("export", str(chain["reward"]), str(tmp_path / "merged"), "--merge")
    models = [
        load_scalar_model(p, head="load").eval() for p in (chain["reward"], tmp_path / "out", tmp_path / "merged")
    ]
    with torch.no_grad():
        first, *others = (model(IDS) for model in models)
    for other in others:
        torch.testing.assert_close(other, first)


def test_other_commands_take_adapters(chain: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "scores.jsonl"
    run("score", "--model", str(chain["reward"]), str(chain["pocket"] / "preferences_train.jsonl"), "--out", str(out))
    assert len(out.read_text().splitlines()) > 10


def test_what_cannot_be_meant_is_refused(
    chain: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = str(chain["root"] / "ppo_max" / "checkpoints" / "last.ckpt")
    assert "needs `--merge`" in refused(capsys, "export", checkpoint, str(tmp_path / "o"), "--dtype", "bfloat16")
    assert "with `--merge` it becomes" in refused(capsys, "export", str(chain["ppo"]), str(tmp_path / "o"))
    config = str(CONFIGS / "pocket" / "ppo_max.yaml")
    prompts = str(chain["pocket"] / "prompts_train.jsonl")
    files = [f"--data.{split}={prompts}" for split in ("train", "val", "test")]
    words = [*files, "--model.policy", str(chain["sft"]), "--model.reward.path", str(chain["reward"])]
    other = ["--model.model.adapter.r", "4", "--trainer.default_root_dir", str(tmp_path / "run")]
    assert "`adapter.r` (4) must be that of the adapter in" in refused(
        capsys, "fit", "--config", config, *words, *other
    )
