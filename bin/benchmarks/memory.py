"""Peak memory that `lit-rlhf plan` predicts beside what CPU runs take: SFT and PPO, one process and ZeRO-2.

Each run is two optimizer steps of a model of about 25 million parameters on random text, started as a command of its
own. Measured is a process's largest resident set minus that of the same command with a model of almost no size, so
that the interpreter and the libraries are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.shapes import versions

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
SIZES = {
    "small": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "large": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
}


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        kind: `sft` or `ppo`.
        strategy: Lightning's name; `auto` is one process, others are two.
        checkpointing: Whether activations are computed again on the way back.
    """

    kind: str
    strategy: str = "auto"
    checkpointing: bool = False


CASES = {
    "SFT, one process": Case("sft"),
    "SFT, one process, checkpointing": Case("sft", checkpointing=True),
    "SFT, ZeRO-2, two processes": Case("sft", "deepspeed_stage_2_cpu"),
    "PPO, one process": Case("ppo"),
    "PPO, ZeRO-2, two processes": Case("ppo", "deepspeed_stage_2_cpu"),
}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Every case: MiB predicted and measured, and their ratio."""
    out: Path = options.out
    shutil.rmtree(out, ignore_errors=True)
    make_models(out)
    rows = {}
    for name, case in CASES.items():
        configs = {size: write_config(out, size, case) for size in SIZES}
        guess = (predicted(configs["large"]) - predicted(configs["small"])) / MIB
        took = (measured(configs["large"]) - measured(configs["small"])) / MIB
        rows[name] = {"predicted_mib": round(guess), "measured_mib": round(took), "ratio": round(guess / took, 2)}
    return {"versions": versions(), "peak_memory": rows}


def environment() -> dict[str, str]:
    """This checkout's package, one thread, no GPU."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def call(*words: str) -> str:
    """Run Python; what it printed."""
    command = [sys.executable, *words]
    done = subprocess.run(command, env=environment(), check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def make_models(out: Path) -> None:
    """The data of the pocket world, and both models with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    call("-m", "lit_rlhf", "pocket", "make", str(out / "data"))
    tokenizer = AutoTokenizer.from_pretrained(out / "data" / "base")
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    for name, size in SIZES.items():
        config = LlamaConfig(**size, **ids, vocab_size=len(tokenizer), max_position_embeddings=512)
        AutoModelForCausalLM.from_config(config).save_pretrained(out / name)
        tokenizer.save_pretrained(out / name)


def write_config(out: Path, size: str, case: Case) -> Path:
    """The config of a case with one of the models, as a JSON file."""
    trainer = {
        "max_steps": 2,
        "accelerator": "cpu",
        "devices": 1 if case.strategy == "auto" else 2,
        "strategy": case.strategy,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "logger": False,
        "limit_val_batches": 0,
        "default_root_dir": str(out / "run"),
        "callbacks": [{"class_path": "ExportCallback", "init_args": {"final": False}}],
    }
    model, data = {"sft": _sft, "ppo": _ppo}[case.kind](out / "data")
    model["init_args"] |= {"policy": str(out / size), "model": {"gradient_checkpointing": case.checkpointing}}
    path = out / f"{size}-{case.kind}-{case.strategy}-{case.checkpointing}.json"
    path.write_text(json.dumps({"trainer": trainer, "model": model, "data": data}), encoding="utf-8")
    return path


def _sft(data: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    files = {"train": str(data / "pretrain.jsonl"), "max_length": 64, "batch_size": 64}
    model = {"class_path": "SFTModule", "init_args": {"micro_batch_tokens": 2048}}
    return model, {"class_path": "SFTDataModule", "init_args": files}


def _ppo(data: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reward = {"class_path": "PythonReward", "init_args": {"function": "lit_rlhf.pocket.gold:gold_reward"}}
    sampling = {"max_response_length": 64, "min_response_length": 64}
    options = {"reward": reward, "critic": {"init": "policy"}, "sampling": sampling}
    sizes = {"rollout_batch_size": 32, "minibatch_size": 32, "micro_batch_tokens": 1024, "max_prompt_length": 16}
    files = {"train": str(data / "prompts_train.jsonl"), **sizes}
    return {"class_path": "PPOModule", "init_args": options}, {"class_path": "RolloutDataModule", "init_args": files}


def predicted(config: Path) -> int:
    """Bytes of the peak, as `lit-rlhf plan` has it."""
    found: dict[str, Any] = json.loads(call("-m", "lit_rlhf", "plan", "--config", str(config), "--cpu", "--json"))
    return int(found["peak"])


def measured(config: Path) -> int:
    """Largest resident set, in bytes, of any process of the run."""
    script = config.parent / "run.py"
    script.write_text(
        "import resource, sys; from lit_rlhf.cli import main; main(sys.argv[1:]);"
        "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)",
        encoding="utf-8",
    )
    lines = call(str(script), "fit", "--config", str(config)).splitlines()
    return max(int(line.split()[1]) for line in lines if line.startswith("PEAK")) * 1024
