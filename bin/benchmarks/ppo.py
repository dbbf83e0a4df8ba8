"""Times PPO iterations of `PPOModule` under a Lightning Trainer: rollout, scoring, update, and what lies between."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import lightning as L
import torch

import lit_rlhf.strategies  # noqa: F401  (makes their names known)
from benchmarks import limits
from benchmarks.session import LOW, fit, heading
from benchmarks.shapes import (
    PRESETS,
    STUB,
    Clock,
    MemoryPeak,
    llama_config,
    make_tokenizer,
    medians,
    prompt_ids,
    read_rows,
    set_eos_rate,
)
from lit_rlhf.datamodules.prompts import EncodedPrompt
from lit_rlhf.datamodules.rollout import RolloutDataModule
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import CriticConfig, LossConfig, PPOOptimizerConfig
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rollout.engine import RolloutEngine
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.rollout.vllm_engine import VLLMEngine
from lit_rlhf.types import Rollout


class TimedPPO(PPOModule):
    """PPO whose models end their responses at a given rate, and whose phases are timed."""

    clock: Clock
    eos_rate: float
    rollouts: list[Rollout]

    def load_models(self) -> None:
        """Load the models, then set the end-of-text rate of policy and reference."""
        super().load_models()
        if self.policy is None or self.reference is None or isinstance(self.engine, VLLMEngine):
            return
        for model in (self.policy, self.reference.model):
            set_eos_rate(model, self.eos_rate)
            model.requires_grad_(model is self.policy)

    def collect(self, *args: Any, **kwargs: Any) -> Any:
        """Timed as `rollout` + `score`."""
        return self.clock.timed("collect", super().collect)(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Rollout:
        """Timed as `rollout`."""
        rollout: Rollout = self.clock.timed("rollout", super().generate)(*args, **kwargs)
        self.rollouts.append(rollout)
        return rollout

    def training_step(self, *args: Any, **kwargs: Any) -> None:
        """Timed as `update`."""
        self.clock.timed("update", super().training_step)(*args, **kwargs)


class GivenPrompts(RolloutDataModule):
    """Prompts that are token ids already."""

    def given(self, prompts: list[EncodedPrompt], tokenizer: Any) -> None:
        """Take them."""
        self._prompts["train"], self._tokenizer = prompts, tokenizer

    def setup(self, stage: str) -> None:
        """Nothing to read."""
        del stage


class Iterations(L.Callback):
    """One row of seconds per iteration."""

    def __init__(self, clock: Clock, memory: MemoryPeak, warmup: int) -> None:
        self.clock, self.memory, self.warmup = clock, memory, warmup
        self.rows: list[dict[str, float]] = []
        self.started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first iteration starts here."""
        self.started = self.clock.now()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the iteration's row."""
        ended, spent = self.clock.now(), self.clock.take()
        row = {"total": ended - self.started, "rollout": spent["rollout"], "update": spent["update"]}
        row["score"] = spent["collect"] - spent["rollout"]
        row["between"] = row["total"] - spent["collect"] - spent["update"]
        self.rows.append(row)
        if len(self.rows) == self.warmup:
            self.memory.peak = 0.0
        self.started = self.clock.now()


def prepare(options: argparse.Namespace, folder: Path) -> tuple[Any, list[EncodedPrompt]]:
    """Write policy and reward folders of the preset's shape; the tokenizer, and the prompts as ids."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    rows = read_rows(options.data)
    tokenizer = make_tokenizer(PRESETS[options.preset][-1], (row["chosen"] for row in rows))
    count = options.prompts * (options.warmup + options.iterations)
    prompts = prompt_ids(tokenizer, options, count)
    if options.stub_models:
        tokenizer = make_tokenizer(STUB[-1], iter(()))
        prompts = [[i % STUB[-1] for i in ids] for ids in prompts]
    positions = options.prompt_len + options.response_len + 8
    config = llama_config(options.preset, positions, layers=options.layers, stubbed=options.stub_models)
    torch.manual_seed(options.seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "policy")
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "reward")
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(folder / name)
    return tokenizer, [EncodedPrompt(ids=tuple(ids), record={}) for ids in prompts]


def engine_of(options: argparse.Namespace) -> tuple[RolloutEngine, SamplingConfig]:
    """What generates, and how; with vLLM every response has its full length by its least one, not by a bias."""
    if getattr(options, "engine", "transformers") == "transformers":  # `bin/bench scaling` and others do not ask
        engine = TransformersEngine(sampler_logprobs=options.sampler_logprobs)
        return engine, SamplingConfig(max_response_length=options.response_len)
    full = SamplingConfig(max_response_length=options.response_len, min_response_length=options.response_len)
    return VLLMEngine(sampler_logprobs=options.sampler_logprobs), full


def build(options: argparse.Namespace, folder: Path, clock: Clock) -> tuple[TimedPPO, GivenPrompts]:
    """Module and data module of the run."""
    tokenizer, prompts = prepare(options, folder)
    engine, sampling = engine_of(options)
    module = TimedPPO(
        policy=str(folder / "policy"),
        reward=ModelReward(str(folder / "reward")),
        critic=CriticConfig(init="reward"),
        sampling=sampling,
        loss=LossConfig(old_logprobs="sampler" if options.sampler_logprobs else "rollout"),
        engine=engine,
        optimizer=PPOOptimizerConfig(lr=1e-6, critic_lr=1e-6),
    )
    module.clock, module.eos_rate, module.rollouts = clock, options.eos_rate, []
    data = GivenPrompts(
        rollout_batch_size=options.prompts,
        minibatch_size=options.prompts // options.mini_batches,
        ppo_epochs=options.ppo_epochs,
        micro_batch_tokens=options.micro_batch_tokens,
    )
    data.given(prompts, tokenizer)
    return module, data


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the iterations; seconds, tokens, padding and memory."""
    clock, memory = Clock(options.clock), MemoryPeak()
    with tempfile.TemporaryDirectory(prefix="bench_ppo_") as folder:
        module, data = build(options, Path(folder), clock)
        iterations = Iterations(clock, memory, options.warmup)
        length = {"max_epochs": options.warmup + options.iterations}
        place = {"strategy": options.strategy, "devices": options.ranks}
        used = fit(module, data, options, Path(folder), callback=iterations, memory=memory, **length, **place)
    timed = iterations.rows[options.warmup :]
    found = report(options, module, timed, used)
    return found if options.stub_models else {**found, **reached(options, module, timed, clock)}


def reached(
    options: argparse.Namespace, module: TimedPPO, seconds: list[dict[str, float]], clock: Clock
) -> dict[str, Any]:
    """This rank's useful arithmetic, and its share of what the machine can do, by phase."""
    shape, rollouts = limits.Shape.of(PRESETS[options.preset], options.layers), module.rollouts[options.warmup :]
    rows = [list(zip(r.prompt_mask.sum(1).tolist(), r.response_mask.sum(1).tolist(), strict=True)) for r in rollouts]
    scored = 1 if options.sampler_logprobs else 2
    work = [limits.ppo_flops(shape, each, options.ppo_epochs, scored_policies=scored) for each in rows]
    flops = [{**each, "total": sum(each.values())} for each in work]
    device, dtype = rollouts[0].input_ids.device.type, LOW[options.precision]
    machine = limits.machine(device, dtype, clock.now)
    pairs = list(zip(flops, seconds, strict=True))
    read = [limits.decode_bytes(shape, each, dtype.itemsize) / 1e9 for each in rows]
    copied = [each / spent["rollout"] / machine["copy_gbs"] for each, spent in zip(read, seconds, strict=True)]
    return {
        "machine": machine,
        "useful_gflop": medians([{phase: each / 1e9 for phase, each in one.items()} for one in flops]),
        "share_of_product_speed": medians([{p: limits.share(a[p], b[p], machine) for p in a} for a, b in pairs]),
        "rollout_share_of_copy_speed": round(statistics.median(copied), 3),
    }


def report(
    options: argparse.Namespace, module: TimedPPO, rows: list[dict[str, float]], used: dict[str, int]
) -> dict[str, Any]:
    """The measured numbers of this rank as one JSON object."""
    rollouts = module.rollouts[options.warmup :]
    responses = sum(int(r.response_mask.sum()) for r in rollouts) / len(rollouts)
    prompts = sum(int(r.prompt_mask.sum()) for r in rollouts) / len(rollouts)
    slots = sum(r.input_ids.numel() for r in rollouts) / len(rollouts)
    seconds = medians(rows)
    return {
        **heading(options),
        "seconds": seconds,
        "all_seconds": [round(row["total"], 4) for row in rows],
        "response_tokens": responses,
        "prompt_tokens": prompts,
        "padding_of_a_rectangle": round(1 - (responses + prompts) / slots, 3),
        "response_tokens_per_s": round(responses / seconds["total"], 1),
        "rollout_tokens_per_s": round(responses / seconds["rollout"], 1),
        "update_tokens_per_s": round(options.ppo_epochs * (responses + prompts) / seconds["update"], 1),
        **used,
    }
