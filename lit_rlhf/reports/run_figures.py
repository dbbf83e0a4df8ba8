"""The figures, drawn by plotly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import plotly.graph_objects as go

from lit_rlhf.reports.run_data import RunData

# Okabe and Ito: told apart with every common color-vision deficiency. The dash says it a second time.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid")
WINDOW = 5

Panel = tuple[str, str, tuple[str, ...]]
FOUR: tuple[Panel, ...] = (
    ("Score", "reward model's score, raw", ("rollout/score",)),
    ("Response length", "tokens", ("rollout/response_length",)),
    ("KL to the reference", "nats a token (k1)", ("rollout/kl",)),
    ("Perplexity of responses", "under the policy", ("rollout/perplexity",)),
)
INSIDE: tuple[Panel, ...] = (
    ("Value", "critic, mean a token", ("rollout/value",)),
    ("Return", "critic's target", ("rollout/return",)),
    ("Advantage", "raw, before whitening", ("rollout/advantage",)),
    ("Value loss", "", ("loss/value",)),
    ("Policy loss", "", ("loss/policy",)),
    ("Explained variance", "of the returns", ("update/explained_variance",)),
    ("Clipped share", "of token ratios", ("update/clip_fraction",)),
    ("KL of an update", "new policy to old, nats", ("update/approx_kl",)),
    ("Gradient norm", "before clipping", ("update/grad_norm",)),
    ("KL coefficient", "", ("kl_coef",)),
    ("Collapse index", "nats a token; flagged when high", ("monitor/collapse/index",)),
    ("Distinct-4", "of the rollout", ("rollout/distinct_4",)),
    ("Upper tail of scores", "2.6 for a normal distribution", ("rollout/score_upper_tail",)),
)


def color_of(k: int) -> str:
    """Color of run ``k``."""
    return COLORS[k % len(COLORS)]


def series_figure(runs: Sequence[RunData], panel: Panel) -> go.Figure | None:
    """One metric over iterations: median of ``WINDOW`` iterations as a line, their range as a band.

    Args:
        runs: Runs to overlay.
        panel: Title, unit, and the metric's names, first found first.

    Returns:
        The figure; None when no run logged the metric.
    """
    title, unit, names = panel
    figure = go.Figure()
    for k, run in enumerate(runs):
        points = run.first(*names)
        if points:
            _add_band(figure, run.name, k, points)
    if not figure.data:
        return None
    add_events(figure, runs)
    return styled(figure, title, "iteration", unit)


def held_out_panels(runs: Sequence[RunData]) -> list[Panel]:
    """One panel a validation metric."""
    names = sorted({name for run in runs for name in run.series if name.startswith("val/")})
    return [(f"Held-out {name.removeprefix('val/').replace('_', ' ')}", "validation", (name,)) for name in names]


def frontier_figure(runs: Sequence[RunData]) -> go.Figure | None:
    """Score against KL, one point an iteration: what was gained and what it cost."""
    figure = go.Figure()
    for k, run in enumerate(runs):
        kl, score = dict(run.first(*FOUR[2][2])), dict(run.first(*FOUR[0][2]))
        at = sorted(kl.keys() & score.keys())
        if not at:
            continue
        sizes = [5 + 8 * i / max(1, len(at) - 1) for i in range(len(at))]
        figure.add_scatter(
            x=_rolling([kl[i] for i in at], median),
            y=_rolling([score[i] for i in at], median),
            text=[f"iteration {i}" for i in at],
            name=run.name,
            mode="lines+markers",
            line={"color": color_of(k), "dash": DASHES[k % len(DASHES)], "width": 1},
            marker={"size": sizes, "color": color_of(k), "opacity": 0.75},
            hovertemplate="%{text}<br>KL %{x:.4f}, score %{y:.3f}<extra>%{fullData.name}</extra>",
        )
    if not figure.data:
        return None
    return styled(figure, "Score-KL frontier", "KL to the reference, nats a token", "score (markers grow with time)")


def distribution_figure(run: RunData, k: int) -> go.Figure | None:
    """Density of the scores over iterations as a map, as in the paper's Figure 13."""
    lines = [line for line in run.histograms if line.get("counts")]
    if not lines:
        return None
    width = max(line["width"] for line in lines)
    columns = [_regridded(line, width) for line in lines]
    low, high = min(min(c) for c in columns), max(max(c) for c in columns)
    rows = range(low, high + 1)
    figure = go.Figure(
        go.Heatmap(
            x=[line["at"] for line in lines],
            y=[(row + 0.5) * width for row in rows],
            z=[[column.get(row, 0.0) for column in columns] for row in rows],
            colorscale="Cividis",
            colorbar={"title": {"text": "share", "side": "right"}, "thickness": 10, "len": 0.9},
            hovertemplate="iteration %{x}, score %{y:.2f}: %{z:.1%}<extra></extra>",
        )
    )
    add_events(figure, [run], colors=["#FFFFFF"])
    return styled(figure, f"Scores over time: {run.name}", "iteration", "score", tall=True)


def add_events(figure: go.Figure, runs: Sequence[RunData], colors: Sequence[str] | None = None) -> None:
    """A labelled vertical line at each flag of the collapse detector."""
    for k, run in enumerate(runs):
        color = colors[k] if colors else color_of(k)
        for event in run.events:
            figure.add_vline(x=event["at"], line={"color": color, "width": 1.5, "dash": "dot"})
            figure.add_annotation(
                x=event["at"],
                y=1,
                yref="paper",
                yanchor="bottom",
                text="⚑",
                showarrow=False,
                font={"color": color if color != "#FFFFFF" else "#333333", "size": 15},
                hovertext=f"{run.name}: collapse flagged at iteration {event['at']}<br>{', '.join(event['fired'])}",
            )


def styled(figure: go.Figure, title: str, x: str, y: str, *, tall: bool = False) -> go.Figure:
    """The look all panels share."""
    return figure.update_layout(
        template="plotly_white",
        title={"text": title, "font": {"size": 15}, "x": 0, "xanchor": "left", "pad": {"l": 12}},
        xaxis={"title": {"text": x, "font": {"size": 11}}, "zeroline": False},
        yaxis={"title": {"text": y, "font": {"size": 11}}, "zeroline": False, "automargin": True},
        margin={"l": 48, "r": 12, "t": 56, "b": 40},
        height=360 if tall else 280,
        showlegend=False,
        hovermode="closest",
        font={"family": "system-ui, sans-serif", "size": 11, "color": "#222"},
    )


def _add_band(figure: go.Figure, name: str, k: int, points: list[tuple[int, float]]) -> None:
    x, y = [p[0] for p in points], [p[1] for p in points]
    color = color_of(k)
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    if len(points) >= 2 * WINDOW:
        low, high = _rolling(y, min), _rolling(y, max)
        figure.add_scatter(
            x=x + x[::-1],
            y=high + low[::-1],
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.18)",
            line={"width": 0},
            hoverinfo="skip",
            name=f"{name} band",
        )
        y = _rolling(y, median)
    figure.add_scatter(
        x=x,
        y=y,
        name=name,
        mode="lines" if len(points) > WINDOW else "lines+markers",
        line={"color": color, "width": 2, "dash": DASHES[k % len(DASHES)]},
        hovertemplate="iteration %{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
    )


def _rolling(y: list[float], statistic: Any) -> list[float]:
    """``statistic`` of the ``WINDOW`` values around each; fewer at the ends."""
    half = WINDOW // 2
    return [float(statistic(y[max(0, i - half) : i + half + 1])) for i in range(len(y))]


def _regridded(line: dict[str, Any], width: float) -> dict[int, float]:
    """Share of the scores in each bin of ``width``; the monitor's grids nest, so bins only merge."""
    total = sum(line["counts"])
    out: dict[int, float] = {}
    for k, count in enumerate(line["counts"]):
        row = math.floor((line["start"] + (k + 0.5) * line["width"]) / width)
        out[row] = out.get(row, 0.0) + count / total
    return out
