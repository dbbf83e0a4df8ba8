"""What of an iteration is not arithmetic: the price of Python, and of sharing the work between ranks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.calls import call, spread
from benchmarks.shapes import versions

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
    """The same global batch by one ZeRO-2 rank and by two, one thread each, in turns; seconds are the first rank's."""
    strategy = ("--strategy", "deepspeed_stage_2_cpu")
    ranks: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for count, runs in ranks.items():
            runs.append(ppo(options, *strategy, "--ranks", str(count)))
    pairs = list(zip(ranks[1], ranks[2], strict=True))
    speedup = {
        name: spread([a["seconds"][name] / b["seconds"][name] for a, b in pairs]) for name in pairs[0][0]["seconds"]
    }
    return {"versions": versions(), "speedup": speedup, "one": ranks[1], "two": ranks[2]}


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
    return call([sys.executable, str(BENCH), "ppo", *given, *extra], options.threads)
