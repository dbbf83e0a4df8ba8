"""How the cost of a PPO iteration grows with response length and with the batch: slopes of log-log fits."""

from __future__ import annotations

import argparse
import math
from typing import Any

from benchmarks import ppo
from benchmarks.shapes import versions

LENGTHS = (32, 64, 128, 256, 512)
BATCHES = (8, 16, 32, 64)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Iterations at every length with the smallest batch, and at every batch with responses of 64 tokens.

    Prompts have one length and responses never end early, so that length and batch are what is asked for.
    """
    by_length = {length: seconds(options, BATCHES[0], length) for length in LENGTHS}
    by_batch = {batch: seconds(options, batch, 64) for batch in BATCHES}
    return {
        "versions": versions(),
        "options": {"preset": options.preset, "precision": options.precision, "prompt_len": options.prompt_len},
        "by_response_length": {"seconds": by_length, "exponents": exponents(by_length)},
        "by_batch": {"seconds": by_batch, "exponents": exponents(by_batch)},
    }


def seconds(options: argparse.Namespace, batch: int, length: int) -> dict[str, float]:
    """Seconds of one iteration, by phase."""
    changed = {"prompts": batch, "response_len": length, "prompt_dist": "fixed", "eos_rate": 0.0}
    result: dict[str, float] = ppo.run(argparse.Namespace(**{**vars(options), **changed}))["seconds"]
    return result


def exponents(by_size: dict[int, dict[str, float]]) -> dict[str, float]:
    """Slope of log(seconds) over log(size) for each phase, by least squares."""
    phases = [name for name in next(iter(by_size.values())) if name != "between"]
    return {name: slope({size: spent[name] for size, spent in by_size.items()}) for name in phases}


def slope(points: dict[int, float]) -> float:
    """Least-squares slope of log(value) over log(key)."""
    x, y = [math.log(key) for key in points], [math.log(value) for value in points.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return round(rise / sum((a - mean_x) ** 2 for a in x), 3)
