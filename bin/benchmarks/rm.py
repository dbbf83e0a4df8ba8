"""Times steps of `RewardModelModule` under a Lightning Trainer on preference pairs."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from benchmarks import limits
from benchmarks.session import LOW, fit, heading
from benchmarks.shapes import PRESETS, Clock, MemoryPeak, llama_config, make_tokenizer, read_rows
from lit_rlhf.config import OptimizerConfig, ScheduleConfig
from lit_rlhf.datamodules.preference import PreferenceDataModule
from lit_rlhf.modules.reward_model import RewardModelModule
from lit_rlhf.types import DeviceBatch, PreferenceBatch


@dataclass
class Step:
    """What one optimizer step cost and did."""

    seconds: float
    pairs: int
    tokens: int
    flops: float


class Steps(L.Callback):
    """Seconds, pairs and real tokens (prompt counted for both responses, as the peer does) of each step."""

    def __init__(self, clock: Clock, memory: MemoryPeak, warmup: int, shape: limits.Shape) -> None:
        self.clock, self.memory, self.warmup, self.shape = clock, memory, warmup, shape
        self.rows: list[Step] = []
        self.started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first step starts here."""
        self.started = self.clock.now()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: DeviceBatch[PreferenceBatch],
        batch_idx: int,
    ) -> None:
        """Close the step's row."""
        ended, pairs = self.clock.now(), batch.content
        tokens = int(pairs.chosen_mask.sum() + pairs.rejected_mask.sum())
        beyond = (mask.sum(1) - pairs.prompt_length for mask in (pairs.chosen_mask, pairs.rejected_mask))
        sizes = torch.stack([pairs.prompt_length, *beyond], dim=1).tolist()
        self.rows.append(Step(ended - self.started, len(pairs), tokens, limits.rm_flops(self.shape, sizes)))
        if len(self.rows) == self.warmup:
            self.memory.peak = 0.0
        self.started = self.clock.now()


class FittingPairs(PreferenceDataModule):
    """Pairs whose longer row fits; longer ones are left out, not shortened, as the peer does."""

    def setup(self, stage: str | None = None) -> None:
        """Encode, then leave out."""
        super().setup(stage)
        limit = self.fits
        self.rows["train"] = [
            row for row in self.rows["train"] if len(row.prompt) + max(len(row.chosen), len(row.rejected)) <= limit
        ]

    fits = 512


def build(options: argparse.Namespace, folder: Path) -> tuple[RewardModelModule, FittingPairs]:
    """Module and data module of the run, on a model written to ``folder``."""
    from transformers import AutoModelForSequenceClassification

    rows = read_rows(options.data)
    tokenizer = make_tokenizer(PRESETS[options.preset][-1], (row["chosen"] for row in rows))
    config = llama_config(options.preset, options.max_length + 8)
    config.num_labels = 1
    torch.manual_seed(options.seed)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    module = RewardModelModule(
        str(folder / "model"),
        head="load",
        lm_coef=0.0,
        optimizer=OptimizerConfig(lr=1e-4),
        schedule=ScheduleConfig(),
        micro_batch_tokens=options.micro_batch_tokens,
    )
    # Longer pairs are encoded whole (the limit is far above any of them) and then left out.
    data = FittingPairs(
        train=str(options.data),
        template="hh",
        max_length=1 << 20,
        batch_size=options.batch_pairs,
        seed=options.seed,
        rejects_dir=str(folder),
    )
    data.fits = options.max_length
    return module, data


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the steps; pairs and tokens a second, and memory."""
    clock, memory = Clock(options.clock), MemoryPeak()
    with tempfile.TemporaryDirectory(prefix="bench_rm_") as folder:
        module, data = build(options, Path(folder))
        steps = Steps(clock, memory, options.warmup, limits.Shape.of(PRESETS[options.preset]))
        length = {"max_steps": options.warmup + options.steps, "max_epochs": -1}
        used = fit(module, data, options, Path(folder), callback=steps, memory=memory, **length)
    kept = steps.rows[options.warmup :]
    seconds, flops = sum(step.seconds for step in kept), sum(step.flops for step in kept)
    machine = limits.machine("cpu", LOW[options.precision], clock.now)
    return {
        **heading(options),
        "pairs_in_dataset": len(data.rows["train"]),
        "steps_timed": len(kept),
        "seconds_per_step": round(seconds / len(kept), 4),
        "pairs_per_s": round(sum(step.pairs for step in kept) / seconds, 3),
        "tokens_per_s": round(sum(step.tokens for step in kept) / seconds, 1),
        "tokens_per_pair": round(sum(step.tokens for step in kept) / sum(step.pairs for step in kept), 1),
        "machine": machine,
        "useful_gflop": {"total": round(flops / 1e9, 1)},
        "share_of_product_speed": {"total": limits.share(flops, seconds, machine)},
        **used,
    }
