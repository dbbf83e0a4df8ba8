"""SFT and reward-model training on the ranks' own rows, to be compared with one process on all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lit_rlhf.config import AdapterConfig, ModelConfig, OptimizerConfig
from lit_rlhf.datamodules.preference import PreferenceDataModule
from lit_rlhf.datamodules.sft import SFTDataModule
from lit_rlhf.modules.base import NonFiniteError
from lit_rlhf.modules.reward_model import RewardModelModule
from lit_rlhf.modules.sft import SFTModule
from tests.modules.test_reward_model import write_pairs
from tests.modules.tiny_ppo import LETTERS, Recorder, write_world
from tests.strategies.sgd import SGDMixin
from tests.strategies.toy import fingerprint, trainer

CLIP = 1.0
ADAPTED = ("sft_adapter", "reward_adapter")
KINDS = ("sft", "reward", *ADAPTED)


class SGDSFT(SGDMixin, SFTModule):
    """SFT with SGD."""


class SGDRewardModel(SGDMixin, RewardModelModule):
    """Reward model with SGD."""


class Faulty(SFTModule):
    """SFT with AdamW that meets one bad update in four, the second: what is bad about it is its ``fault``.

    ``left out`` is how such a run should end: the update is not computed at all.
    """

    fault = ""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.bad = self.current_epoch == 0 and batch_idx == 1
        if not (self.bad and self.fault == "left out"):
            super().training_step(batch, batch_idx)

    def text_loss(self, text: Any, num_tokens: float) -> torch.Tensor:
        loss = super().text_loss(text, num_tokens)
        if self.bad and self.fault == "loss" and self.global_rank == self.trainer.world_size - 1:
            return loss * float("nan")
        if self.bad and self.fault == "gradient":  # the root of zero: a finite loss, one element without a gradient
            return loss + (next(self.parameters()).flatten()[0] * 0.0).sqrt()
        return loss


def write_files(folder: Path) -> None:
    """A tiny world, responses of many lengths (so that ranks hold different token counts), and pairs."""
    folder.mkdir()
    write_world(folder)
    rows = [{"prompt": LETTERS[i % 8], "completion": LETTERS[: 1 + (5 * i) % 9]} for i in range(16)]
    (folder / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_pairs(folder / "pairs.jsonl", count=16)


def sft_data(folder: Path) -> SFTDataModule:
    """Two steps an epoch."""
    return SFTDataModule(train=str(folder / "dialogues.jsonl"), batch_size=8, max_length=32)


def build(folder: Path, kind: str) -> tuple[Any, Any]:
    """Module and data of ``kind``."""
    torch.manual_seed(0)  # fresh heads and adapters are drawn from the global generator
    options: dict[str, Any] = {"optimizer": OptimizerConfig(lr=0.1, max_grad_norm=CLIP), "micro_batch_tokens": 40}
    if kind in ADAPTED:
        options["model"] = ModelConfig(adapter=AdapterConfig(r=2, alpha=64.0, target_modules="all-linear"))
    policy = str(folder / "policy")
    if kind.startswith("sft"):
        return SGDSFT(policy, **options), sft_data(folder)
    module = SGDRewardModel(policy, lm_coef=0.5, **options)
    module.configure_model()
    return module, PreferenceDataModule(train=str(folder / "pairs.jsonl"), batch_size=8, max_length=32)


def equality(folder: Path, strategy: str, devices: int, out: Path) -> dict[str, Any]:
    """Two epochs of two steps each; weights go to ``out`` (rank 0), the numbers of every step come back."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        module, data = build(folder, kind)
        recorder = Recorder()
        trainer(strategy, folder, devices=devices, epochs=2, callbacks=[recorder]).fit(module, datamodule=data)
        if module.global_rank == 0:
            trained = [p.detach().clone() for p in module.parameters() if p.requires_grad]
            torch.save(trained, out / f"{kind}-{strategy}.pt")
        counts = {"trained": sum(p.requires_grad for p in module.parameters()), "all": len(list(module.parameters()))}
        found[kind] = {"rows": recorder.metrics, "hash": fingerprint(module), **counts}
    return found


def faults(folder: Path, strategy: Any, devices: int, root: Path) -> dict[str, dict[str, Any]]:
    """How runs end that meet an update which is not finite, by fault and by what is to be done about it."""
    found: dict[str, dict[str, Any]] = {}
    cases = [("", "skip"), ("left out", "skip"), *((f, do) for f in ("loss", "gradient") for do in ("skip", "stop"))]
    for fault, do in cases:
        module = Faulty(str(folder / "policy"), OptimizerConfig(lr=0.01), micro_batch_tokens=40, on_non_finite=do)
        module.fault = fault
        run = trainer(strategy, root / do / fault.replace(" ", "_"), devices=devices, epochs=2)
        error = ""
        try:
            run.fit(module, datamodule=sft_data(folder))
        except NonFiniteError as problem:
            error = str(problem)
        found[f"{fault}, {do}"] = {
            "hash": fingerprint(module),
            "steps": run.global_step,
            "skipped": module.skipped_updates,
            "error": error,
        }
    return found
