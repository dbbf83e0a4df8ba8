"""TRL's PPO on the same random models, prompts and lengths, where TRL is installed."""

from __future__ import annotations

import json
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

UPDATES = 3


def missing() -> str | None:
    """What has to be installed for it, or None."""
    for name in ("trl", "accelerate"):
        if find_spec(name) is None:
            return name
    try:
        import trl.experimental.ppo  # noqa: F401
    except ImportError as error:
        return f"trl with its PPOTrainer ({error})"
    return None


def seconds_per_iteration(shape: Any, folder: Path, device: str) -> float:
    """The shortest of the iterations after the first: rollout, scoring and one pass of updates.

    Args:
        shape: Sizes, as of our own row.
        folder: With its policy, reward model and prompts.
        device: ``cuda`` or ``cpu``.
    """
    os.environ.update(TRL_EXPERIMENTAL_SILENCE="1", ACCELERATE_MIXED_PRECISION="bf16")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]
        """The end of every iteration."""

        def __init__(self) -> None:
            self.ends = [time.perf_counter()]

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            self.ends.append(time.perf_counter())

    def causal(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=dtype)

    def scalar(dtype: torch.dtype) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=dtype, num_labels=1)

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    texts = [json.loads(line)["prompt"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    most = max(1, shape.micro_batch_tokens // (shape.prompt + shape.response))
    rows = max(count for count in range(1, most + 1) if shape.rows % count == 0)
    config = PPOConfig(
        output_dir=str(folder / "out"), bf16=True, use_cpu=device == "cpu", report_to="none", save_strategy="no",
        logging_strategy="no", disable_tqdm=True, num_sample_generations=0, gradient_checkpointing=False,
        per_device_train_batch_size=rows, gradient_accumulation_steps=shape.rows // rows,
        num_mini_batches=shape.rows // shape.minibatch, num_ppo_epochs=1, total_episodes=shape.rows * UPDATES,
        local_rollout_forward_batch_size=rows, response_length=shape.response,
    )  # fmt: skip
    clock = Clock()
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=causal(torch.float32), ref_model=causal(torch.bfloat16),
        reward_model=scalar(torch.bfloat16), value_model=scalar(torch.float32), callbacks=[clock],
        train_dataset=Dataset.from_dict({"input_ids": [tokenizer(text)["input_ids"] for text in texts]}),
    )  # fmt: skip
    trainer.train()
    spans = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    return min(spans[1:] or spans)
