"""Memory and time of one PPO run, by how its four models are kept: copies of their own, or adapters on one backbone."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import lightning as L

from lit_rlhf.commands.processes import wait_for
from lit_rlhf.files import write_text
from lit_rlhf.user_errors import UserError
from real_model.figures import plot_cost
from real_model.study import Study

ITERATIONS = 3
"""The first one of each run is not counted: it warms up caches and allocators."""
FILE = "cpu_clock.json"
FULL = "all weights trained, four models"
LORA = "LoRA, four models on one base"
LORA_BF16 = "LoRA, one base in bf16"
WHOLE_CRITIC = "all weights, critic of all 30 layers"
RECOMPUTED = "all weights, gradient checkpointing"
LORA_RECOMPUTED = "LoRA, bf16 base, gradient checkpointing"


class CpuClock(L.Callback):
    """Writes CPU seconds and peak memory of the process after every iteration into the run directory."""

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a row and write them all."""
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._rows.append({"cpu": time.process_time(), "gib": kib / 2**20})
        write_text(Path(trainer.default_root_dir) / FILE, json.dumps(self._rows))


def measure(study: Study) -> list[Path]:
    """Run vanilla PPO of ``study`` in every way that is not measured yet, one at a time; write cost.json and cost.png.

    Raises:
        UserError: SFT and proxy, which it starts from, are not there yet.
    """
    missing = [stage for stage in ("sft", "proxy") if not study.done(stage)]
    if missing:
        raise UserError(f"`--cost` starts from {' and '.join(missing)} of {study.runs}: run the study first.")
    root = study.runs / "cost"
    merged = {stage: root / "merged" / stage for stage in ("sft", "proxy")}
    for stage, folder in merged.items():
        if not (folder / "config.json").exists():
            wait_for([study.command("export", str(study.model(stage)), str(folder), "--merge")])
    proxy = "--model.reward.init_args.reward.init_args.path"
    whole = ["--model.policy", str(merged["sft"]), proxy, str(merged["proxy"])]
    full = [*whole, "--model.model.adapter", "null", "--model.optimizer.lr", "2e-5"]
    bf16 = ["--trainer.precision", "bf16-mixed", "--model.model.adapter.base", "bfloat16"]
    recomputing = ["--model.model.gradient_checkpointing", "true"]
    ways = {  # by place in this list is where they lie: new ones go to its end
        FULL: full,
        LORA: [],
        LORA_BF16: bf16,
        WHOLE_CRITIC: [*full, "--model.critic.init", "policy"],
        RECOMPUTED: [*full, *recomputing],
        LORA_RECOMPUTED: [*bf16, *recomputing],
    }
    rows = [_measured(study, root / str(place), name, words) for place, (name, words) in enumerate(ways.items())]
    write_text(root / "cost.json", json.dumps(rows, indent=1) + "\n")
    return [root / "cost.json", plot_cost(rows, root / "cost.png")]


def _measured(study: Study, run: Path, name: str, words: list[str]) -> dict[str, Any]:
    """Mean CPU seconds of the iterations after the first, and the peak of the whole run."""
    clock = run / FILE
    if not clock.exists() or len(json.loads(clock.read_text(encoding="utf-8"))) < ITERATIONS:
        fit = ["fit", "--config", str(study.config("ppo_vanilla")), *words, "--trainer.default_root_dir", str(run)]
        fit += ["--trainer.max_epochs", str(ITERATIONS), "--trainer.limit_val_batches", "0", "--data.seed", "0"]
        fit += ["--trainer.callbacks+", "real_model.cost.CpuClock", "--trainer.enable_checkpointing", "false"]
        run.mkdir(parents=True, exist_ok=True)
        wait_for([study.command(*fit, log=run / "log", threads=1)])
    rows = json.loads(clock.read_text(encoding="utf-8"))
    seconds = (rows[-1]["cpu"] - rows[0]["cpu"]) / (len(rows) - 1)
    return {"name": name, "seconds": seconds, "gib": rows[-1]["gib"]}
