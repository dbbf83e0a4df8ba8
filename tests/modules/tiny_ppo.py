"""A PPO problem of a few thousand parameters: random models on ten letters, so that responses end now and then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_rlhf.config import ScheduleConfig
from lit_rlhf.datamodules.rollout import RolloutDataModule
from lit_rlhf.models.scalar import ScalarHead, ScalarModel
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import LossConfig, PPOOptimizerConfig
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rollout.sampling import SamplingConfig
from tests.models.tiny import make_tokenizer, tiny_config

LETTERS = "abcdefgh :"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ': ' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'a:' }}{% endif %}"
)


SMALL = {
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2},
    "gpt2": {"n_embd": 16, "n_head": 2},
}


def write_world(
    folder: Path, *, prompts: int = 32, architecture: str = "llama", sizes: dict[str, int] | None = None
) -> Path:
    """Policy, reward model and prompt files in ``folder``; ``sizes`` in place of the smallest."""
    from transformers import AutoModelForCausalLM

    tokenizer = make_tokenizer(LETTERS)
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = tiny_config(architecture, len(tokenizer), **(sizes or SMALL[architecture]))
    policy = AutoModelForCausalLM.from_config(config)
    for parameter in policy.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    ScalarModel(policy.base_model, ScalarHead(config.hidden_size)).save_pretrained(folder / "reward", tokenizer)
    words = ["".join(LETTERS[(i * k + k) % 8] for k in range(1, 3 + i % 5)) for i in range(prompts)]
    rows = [json.dumps({"prompt": word, "id": i}) for i, word in enumerate(words)]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    texts = [json.dumps({"text": f"{word} {word}"}) for word in words]
    (folder / "texts.jsonl").write_text("\n".join(texts) + "\n")
    return folder


def write_opponent(world: Path, response: str = "a", gold: float = 0.0) -> Path:
    """The same saved answer to every prompt of the world."""
    lines = (world / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [{"row": i, "record": json.loads(line), "response": response, "gold": gold} for i, line in enumerate(lines)]
    (world / "opponent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return world / "opponent.jsonl"


def make_ppo(world: Path, kind: type[PPOModule] = PPOModule, **options: Any) -> PPOModule:
    """The module (or a subclass, ``kind``) on a world, any option overridden."""
    defaults: dict[str, Any] = {
        "policy": str(world / "policy"),
        "reward": ModelReward(str(world / "reward")),
        "sampling": SamplingConfig(max_response_length=10),
        "optimizer": PPOOptimizerConfig(lr=1e-3, critic_lr=1e-3),
        "schedule": ScheduleConfig(kind="constant", warmup=0),
        "loss": LossConfig(),
    }
    return kind(**{**defaults, **options})


def make_data(world: Path, **options: Any) -> RolloutDataModule:
    """The data module on a world, any option overridden."""
    defaults: dict[str, Any] = {
        "train": str(world / "prompts.jsonl"),
        "val": str(world / "prompts.jsonl"),
        "rollout_batch_size": 16,
        "minibatch_size": 8,
        "micro_batch_tokens": 64,
        "max_prompt_length": 32,
        "eval_limit": 4,
    }
    return RolloutDataModule(**{**defaults, **options})


def make_trainer(root: Path, **options: Any) -> L.Trainer:
    """A silent CPU trainer."""
    defaults: dict[str, Any] = {
        "default_root_dir": str(root),
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**{**defaults, **options})


class Recorder(L.Callback):
    """Keeps every experience and the metrics after each step."""

    def __init__(self) -> None:
        self.experiences: list[Any] = []
        self.metrics: list[dict[str, float]] = []

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, experience: Any) -> None:
        """Keep the experience."""
        self.experiences.append(experience)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Keep the metrics."""
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def weights(module: L.LightningModule) -> dict[str, torch.Tensor]:
    """A copy of the trainable state."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
