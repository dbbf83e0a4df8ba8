"""The charts of a run's page, drawn by plotly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import plotly.graph_objects as go

from lit_rlhf.reports.figures import Chart, literal, styled
from lit_rlhf.reports.palette import BLACK, DASHES, SEQUENCE
from lit_rlhf.reports.run_data import RunData

WINDOW = 5
MAX_ROWS = 500  # of the map of scores: a run whose scores explode still makes a page of some megabytes


class Panel(NamedTuple):
    """One metric over iterations: its heading, its unit and its name in the logs."""

    title: str
    unit: str
    name: str


SCORE = Panel("Score", "reward model's score, raw", "rollout/score")
LENGTH = Panel("Response length", "tokens", "rollout/response_length")
KL = Panel("KL to the reference", "nats per token (k1)", "rollout/kl")
PERPLEXITY = Panel("Perplexity of responses", "under the policy", "rollout/perplexity")
FOUR = (SCORE, LENGTH, KL, PERPLEXITY)
INSIDE = (
    Panel("Value", "critic, mean per token", "rollout/value"),
    Panel("Return", "critic's target", "rollout/return"),
    Panel("Advantage", "raw, before whitening", "rollout/advantage"),
    Panel("Value loss", "", "loss/value"),
    Panel("Policy loss", "", "loss/policy"),
    Panel("Explained variance", "of the returns", "update/explained_variance"),
    Panel("Clipped share", "of token ratios", "update/clip_fraction"),
    Panel("KL of an update", "new policy to old, nats", "update/approx_kl"),
    Panel("Gradient norm", "before clipping", "update/grad_norm"),
    Panel("KL coefficient", "", "kl_coef"),
    Panel("Collapse index", "nats per token; flagged when high", "monitor/collapse/index"),
    Panel("Distinct-4", "of the rollout", "rollout/distinct_4"),
    Panel("Variety across prompts", "1: nothing in common, 0: one answer", "rollout/variety"),
    Panel("Distinct responses", "of all responses", "rollout/distinct_responses"),
    Panel("Upper tail of scores", "2.6 for a normal distribution", "rollout/score_upper_tail"),
)


def color_of(k: int) -> str:
    """Color of run ``k``."""
    return SEQUENCE[k % len(SEQUENCE)]


def dash_of(k: int) -> str:
    """Dash of run ``k``, in plotly's and SVG's words."""
    return DASHES[k % len(DASHES)]


def series_charts(runs: Sequence[RunData], panels: Sequence[Panel]) -> list[Chart]:
    """The charts of those panels that a run logged."""
    figures = [(panel.title, series_figure(runs, panel)) for panel in panels]
    return [Chart(title, figure) for title, figure in figures if figure is not None]


def series_figure(runs: Sequence[RunData], panel: Panel) -> go.Figure | None:
    """One metric over iterations: median of ``WINDOW`` iterations as a line, their range as a band.

    Held-out metrics are shown as they were measured: a median of validations would spread a collapse.

    Returns:
        The figure; None when no run logged the metric.
    """
    figure = go.Figure()
    for k, run in enumerate(runs):
        points = run.series.get(panel.name)
        if points:
            _add_band(figure, literal(run.name), k, points, smooth=not panel.name.startswith("val/"))
    if not figure.data:
        return None
    _add_events(figure, runs)
    return styled(figure, x="iteration", y=panel.unit)


def held_out_panels(runs: Sequence[RunData]) -> list[Panel]:
    """One panel a validation metric."""
    names = sorted({name for run in runs for name in run.series if name.startswith("val/")})
    return [Panel(f"Held-out {name.removeprefix('val/').replace('_', ' ')}", "", name) for name in names]


def frontier_charts(runs: Sequence[RunData]) -> list[Chart]:
    """Score against KL, one point an iteration: what was gained and what it cost."""
    figure = go.Figure()
    for k, run in enumerate(runs):
        kl, score = dict(run.series.get(KL.name, [])), dict(run.series.get(SCORE.name, []))
        at = sorted(kl.keys() & score.keys())
        if not at:
            continue
        sizes = [5 + 8 * i / max(1, len(at) - 1) for i in range(len(at))]
        figure.add_scatter(
            x=_rolling([kl[i] for i in at], median),
            y=_rolling([score[i] for i in at], median),
            text=[f"iteration {i}" for i in at],
            name=literal(run.name),
            mode="lines+markers",
            line={"color": color_of(k), "dash": dash_of(k), "width": 1},
            marker={"size": sizes, "color": color_of(k), "opacity": 0.75},
            hovertemplate="%{text}<br>KL %{x:.4f}, score %{y:.3f}<extra>%{fullData.name}</extra>",
        )
    styled(figure, x="KL to the reference, nats per token", y="score", height=320)
    return [Chart("Score-KL frontier (markers grow with time)", figure)] if figure.data else []


def distribution_charts(runs: Sequence[RunData]) -> list[Chart]:
    """A map of the scores for each run that has histograms."""
    figures = [(run.name, distribution_figure(run)) for run in runs]
    return [Chart(f"Scores over time: {name}", figure) for name, figure in figures if figure is not None]


class ScoreShares(NamedTuple):
    """Shares of a rollout's responses by score, a column an iteration.

    Attributes:
        iterations: Of the columns.
        scores: Middles of the rows, ascending.
        density: Shares, ``[row][column]``; a column's sum is 1.
    """

    iterations: list[int]
    scores: list[float]
    density: list[list[float]]


def score_shares(run: RunData) -> ScoreShares | None:
    """The run's logged histograms on one grid; None where it logged none."""
    lines = [line for line in run.histograms if line["counts"]]
    if not lines:
        return None
    width = _row_width(lines)
    columns = [_regridded(line, width) for line in lines]
    rows = range(min(map(min, columns)), max(map(max, columns)) + 1)
    return ScoreShares(
        [line["at"] for line in lines],
        [(row + 0.5) * width for row in rows],
        [[column.get(row, 0.0) for column in columns] for row in rows],
    )


def distribution_figure(run: RunData) -> go.Figure | None:
    """Density of the scores over iterations as a map, as in the paper's Figure 13."""
    shares = score_shares(run)
    if shares is None:
        return None
    figure = go.Figure(
        go.Heatmap(
            x=shares.iterations,
            y=shares.scores,
            z=shares.density,
            colorscale="Cividis",
            colorbar={"title": {"text": "share", "side": "right"}, "thickness": 10, "len": 1.0, "tickformat": ".0%"},
            hovertemplate="iteration %{x}, score %{y:.2f}: %{z:.1%}<extra></extra>",
        )
    )
    _add_events(figure, [run], line="white", flag=BLACK)
    return styled(figure, x="iteration", y="score", height=360)


def _add_events(figure: go.Figure, runs: Sequence[RunData], *, line: str = "", flag: str = "") -> None:
    """A flagged vertical line at each event of the collapse detector, in the run's color where none is named."""
    for k, run in enumerate(runs):
        for event in run.events:
            told = f"{run.name}: collapse flagged at iteration {event['at']}: {', '.join(event['fired'])}"
            figure.add_vline(x=event["at"], line={"color": line or color_of(k), "width": 1.5, "dash": "dot"})
            figure.add_annotation(
                x=event["at"],
                y=1,
                yref="paper",
                yanchor="bottom",
                text="⚑",
                showarrow=False,
                font={"color": flag or color_of(k), "size": 15},
                hovertext=literal(told, 200),
            )


def _add_band(figure: go.Figure, name: str, k: int, points: list[tuple[int, float]], *, smooth: bool) -> None:
    x, y = [p[0] for p in points], [p[1] for p in points]
    color = color_of(k)
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    if smooth and len(points) >= 2 * WINDOW:
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
        mode="lines" if smooth and len(points) > WINDOW else "lines+markers",
        line={"color": color, "width": 2, "dash": dash_of(k)},
        hovertemplate="iteration %{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
    )


def _rolling(y: list[float], statistic: Callable[[list[float]], float]) -> list[float]:
    """``statistic`` of the ``WINDOW`` values around each; fewer at the ends."""
    half = WINDOW // 2
    return [float(statistic(y[max(0, i - half) : i + half + 1])) for i in range(len(y))]


def _row_width(lines: Sequence[dict[str, Any]]) -> float:
    """The widest bin of all, doubled until the rows of the map are at most ``MAX_ROWS``."""
    width = max(float(line["width"]) for line in lines)
    low = min(line["start"] for line in lines)
    high = max(line["start"] + len(line["counts"]) * line["width"] for line in lines)
    while (high - low) / width > MAX_ROWS:
        width *= 2
    return width


def _regridded(line: dict[str, Any], width: float) -> dict[int, float]:
    """Share of the scores in each bin of ``width``; the monitor's grids nest, so bins only merge."""
    total = sum(line["counts"])
    out: dict[int, float] = {}
    for k, count in enumerate(line["counts"]):
        row = math.floor((line["start"] + (k + 0.5) * line["width"]) / width)
        out[row] = out.get(row, 0.0) + count / total
    return out
