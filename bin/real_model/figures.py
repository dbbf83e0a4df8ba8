"""Figures of the demonstration, on white, so that they read on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.commands.pocket_pipeline import joined_metrics
from lit_rlhf.reports.palette import BLUE, DIM, GREEN, GRID, VERMILION
from lit_rlhf.reports.plots import read_metrics
from real_model.study import PTX, TITLES, Study

LOOKS = {"ppo_max": (BLUE, "-"), "ppo_vanilla": (VERMILION, "--"), PTX: (GREEN, ":")}
PANELS = {
    "rollout/score": "proxy score",
    "rollout/kl": "KL to SFT, nats per token",
    "rollout/response_length": "response length, tokens",
    "rollout/cut_rate": "share of responses cut",
}


def plot_curves(results: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Proxy and judge over the square root of the KL divergence, as differences from SFT on the same prompts."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for ax, (key, title) in zip(
        axes, {"proxy": "proxy (trained on)", "judge": "judge (never seen)"}.items(), strict=True
    ):
        for result in results:
            for arm, points in result["curves"].items():
                color, style = LOOKS[arm]
                x = [math.sqrt(max(0.0, point["kl"])) for point in points]
                y = [point[key] - points[0][key] for point in points]
                label = TITLES[arm] if result is results[0] else None
                ax.plot(x, y, style, color=color, marker="o", markersize=4, label=label)
        _dress(ax, title, "sqrt(KL to SFT), KL in nats per response")
    axes[0].set_ylabel("mean score less SFT's")
    axes[0].legend(frameon=False)
    return _save(figure, out)


def plot_wins(results: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Win rate over SFT at every validation, by a judge of the policy's own kind and by one that reads words alone."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained", sharey=True)
    titles = {"judge": "judge: an adapter on the same base", "words": "word judge: a logistic regression"}
    for ax, (judge, title) in zip(axes, titles.items(), strict=True):
        for result in results:
            for arm, points in result["curves"].items():
                color, style = LOOKS[arm]
                known = [(point["iteration"], point["wins"][judge]) for point in points if point["wins"] is not None]
                x, rates = [place for place, _ in known], [rate for _, rate in known]
                label = TITLES[arm] if result is results[0] else None
                ax.plot(x, [rate["mean"] for rate in rates], style, color=color, marker="o", markersize=4, label=label)
                ax.fill_between(
                    x, [rate["low"] for rate in rates], [rate["high"] for rate in rates], color=color, alpha=0.12, lw=0
                )
        ax.axhline(0.5, color=DIM, linewidth=0.8)
        ax.set_ylim(0, 1)
        _dress(ax, title, "iteration")
    axes[0].set_ylabel("win rate over SFT")
    axes[0].legend(frameon=False, loc="lower left")
    return _save(figure, out)


def plot_training(studies: Sequence[Study], out: Path) -> Path:
    """What the training rollouts of every arm say, iteration by iteration."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(PANELS), figsize=(15, 3.3), layout="constrained")
    for study in studies:
        for arm in study.options.arms:
            if not (study.runs / arm / "csv").exists():
                continue
            metrics, (color, style) = read_metrics(joined_metrics(study.runs / arm)), LOOKS[arm]
            for ax, name in zip(axes, PANELS, strict=True):
                series = metrics.get(name, {})
                label = TITLES[arm] if study is studies[0] else None
                ax.plot([x + 1 for x in series], list(series.values()), style, color=color, label=label)
    for ax, title in zip(axes, PANELS.values(), strict=True):
        _dress(ax, title, "iteration")
    axes[0].legend(frameon=False)
    return _save(figure, out)


def plot_cost(rows: Sequence[Mapping[str, Any]], out: Path) -> Path:
    """Peak memory and CPU seconds per iteration of the same PPO run, by how its four models are kept."""
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9, 0.8 + 0.45 * len(rows)), layout="constrained", sharey=True)
    names = [row["name"] for row in rows]
    for ax, (key, title, form) in zip(axes, COSTS, strict=True):
        values = [row[key] for row in rows]
        bars = ax.barh(names, values, color=[BLUE if "LoRA" in name else VERMILION for name in names], height=0.6)
        ax.bar_label(bars, labels=[format(value, form) for value in values], padding=3)
        ax.set_xlim(0, 1.18 * max(values))
        _dress(ax, title, None)
    axes[0].invert_yaxis()
    return _save(figure, out)


COSTS = (("gib", "peak memory of the process, GiB", ".2f"), ("seconds", "CPU seconds per iteration", ".1f"))


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    return plt


def _dress(ax: Any, title: str, x: str | None) -> None:
    ax.set_title(title, fontsize=10)
    if x is not None:
        ax.set_xlabel(x, color=DIM)
    ax.grid(color=GRID)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _save(figure: Any, out: Path) -> Path:
    figure.savefig(out, dpi=110, facecolor="white")
    return out
