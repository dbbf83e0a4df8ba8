"""What of an iteration is not arithmetic: the price of Python, and of sharing the work between ranks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.calls import call, spread
from benchmarks.shapes import versions
from benchmarks.tricks import NAMES

BENCH = Path(__file__).resolve().parent.parent / "bench"


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """The same iterations with the preset's models and with stubs, interleaved.

    The stubs are one layer of width 2 over a small vocabulary. What they leave is Lightning, our loops, tokenizers,
    PyTorch's dispatch and the decoding loop step by step: the price of Python.
    """
    full, stubbed = [], []
    for _ in range(options.rounds):
        full.append(ppo(options))
        stubbed.append(ppo(options, "--stub-models"))
    phases = full[0]["seconds"]
    shares = {
        name: spread([b["seconds"][name] / a["seconds"]["total"] for a, b in zip(full, stubbed, strict=True)], digits=4)
        for name in phases
    }
    return {"versions": versions(), "share_of_the_total": shares, "full": full, "stubbed": stubbed}


def zero(options: argparse.Namespace) -> dict[str, Any]:
    """The same global batch by one rank and by two, one thread each, in turns; seconds are the first rank's.

    DDP on one rank is Lightning's single device.
    """
    found: dict[str, Any] = {"versions": versions()}
    for strategy in ("deepspeed_stage_2_cpu", "ddp"):
        ranks: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for count, runs in ranks.items():
                alone = "auto" if strategy == "ddp" and count == 1 else strategy
                runs.append(ppo(options, "--strategy", alone, "--ranks", str(count)))
        found[strategy] = {"speedup": _times_cheaper(ranks[1], ranks[2]), "one": ranks[1], "two": ranks[2]}
    return found


def tricks(options: argparse.Namespace) -> dict[str, Any]:
    """The iteration with every trick and without each, in turns: how many times longer it takes without."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("none", *NAMES)}
    for _ in range(options.rounds):
        for name, done in runs.items():
            done.append(ppo(options, *([] if name == "none" else ["--without", name])))
    times = {name: _times_cheaper(done, runs["none"]) for name, done in runs.items() if name != "none"}
    peaks = {name: spread([run["memory_peak_mib"] for run in done], digits=0) for name, done in runs.items()}
    return {"versions": versions(), "times_longer_without": times, "peak_mib_without": peaks, "runs": runs}


def _times_cheaper(dear: list[dict[str, Any]], cheap: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds of the dear over those of the cheap, by phase, over the rounds."""
    pairs = [(a["seconds"], b["seconds"]) for a, b in zip(dear, cheap, strict=True)]
    return {name: spread([a[name] / b[name] for a, b in pairs]) for name in pairs[0][0] if name != "between"}


def ppo(options: argparse.Namespace, *extra: str) -> dict[str, Any]:
    """`bin/bench ppo` with the same options, in a process of its own."""
    names = [
        "preset",
        "threads",
        "precision",
        "clock",
        "micro_batch_tokens",
        "seed",
        "data",
        "prompt_len",
        "ppo_epochs",
    ]
    names += ["mini_batches", "iterations", "warmup", "prompts", "prompt_dist", "response_len", "eos_rate"]
    given = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    given += ["--sampler-logprobs"] if options.sampler_logprobs else []
    left_out = getattr(options, "without", [])
    given += ["--without", *left_out] if left_out else []
    given += [] if options.layers is None else ["--layers", str(options.layers)]
    return call([sys.executable, str(BENCH), "ppo", *given, *extra], options.threads)
