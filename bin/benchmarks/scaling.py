"""How the cost of a PPO iteration grows with response length and with the batch: slopes of log-log fits."""

from __future__ import annotations

import argparse
import math
from typing import Any

from torch.profiler import ProfilerActivity, profile

from benchmarks import ppo
from benchmarks.shapes import versions


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Iterations at every length with the first batch, and at every batch with responses of 64 tokens.

    Prompts have one length and responses never end early, so that length and batch are what is asked for.
    """
    few = options.batches[0]
    by_length = {length: seconds(options, few, length) for length in options.lengths}
    by_batch = {batch: seconds(options, batch, 64) for batch in options.batches}
    attention = {length: attention_share(options, few, length) for length in options.lengths}
    return {
        "versions": versions(),
        "options": {"preset": options.preset, "precision": options.precision, "prompt_len": options.prompt_len},
        "by_response_length": {"seconds": by_length, "exponents": exponents(by_length)},
        "attention_share_by_response_length": attention,
        "by_batch": {"seconds": by_batch, "exponents": exponents(by_batch)},
    }


def seconds(options: argparse.Namespace, batch: int, length: int) -> dict[str, float]:
    """Seconds of one iteration, by phase."""
    result: dict[str, float] = ppo.run(sized(options, batch, length))["seconds"]
    return result


def sized(options: argparse.Namespace, batch: int, length: int, **changed: Any) -> argparse.Namespace:
    """The options with another batch and response length."""
    sizes = {"prompts": batch, "response_len": length, "prompt_dist": "fixed", "eos_rate": 0.0}
    return argparse.Namespace(**{**vars(options), **sizes, **changed})


def attention_share(options: argparse.Namespace, batch: int, length: int) -> float:
    """Share of attention, forward and backward, in the time of all PyTorch operators of a first iteration."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        ppo.run(sized(options, batch, length, warmup=0, iterations=1))
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages() if "::" in event.key}
    attention = sum(time for name, time in times.items() if "scaled_dot_product" in name)
    return float(round(attention / sum(times.values()), 3))


def exponents(by_size: dict[int, dict[str, float]]) -> dict[str, float]:
    """Slope of log(seconds) over log(size) for each phase, by least squares; none of a single size."""
    if len(by_size) < 2:
        return {}
    phases = [name for name in next(iter(by_size.values())) if name != "between"]
    return {name: slope({size: spent[name] for size, spent in by_size.items()}) for name in phases}


def slope(points: dict[int, float]) -> float:
    """Least-squares slope of log(value) over log(key)."""
    x, y = [math.log(key) for key in points], [math.log(value) for value in points.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return round(rise / sum((a - mean_x) ** 2 for a in x), 3)
