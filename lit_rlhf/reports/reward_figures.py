"""The report's charts as plotly figures: drawn to be read at the width of a phone, without a legend to look up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.reports.figures import literal, styled
from lit_rlhf.reports.palette import BLACK, BLUE, DIM, GREEN, ORANGE, VERMILION
from lit_rlhf.reward_report.accuracy import Histogram, LengthBucket
from lit_rlhf.reward_report.calibration import Calibration
from lit_rlhf.reward_report.length_bias import LengthBias


def difference_chart(histogram: Histogram) -> Any:
    """Figure 2 of the paper: counts of r(chosen) - r(rejected), the wrongly ordered pairs in another color."""
    edges = histogram.edges
    centers = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
    colors = [VERMILION if center < 0 else BLUE for center in centers]
    figure = go.Figure(
        go.Bar(
            x=centers,
            y=list(histogram.counts),
            width=(edges[1] - edges[0]),
            marker={"color": colors, "line": {"color": "white", "width": 1}},
            hovertemplate="%{x:.2f}: %{y} pairs<extra></extra>",
        )
    )
    figure.add_vline(x=0, line={"color": BLACK, "width": 1})
    top = {"xref": "paper", "yref": "paper", "y": 1.0, "yanchor": "bottom", "showarrow": False}
    figure.add_annotation(text="◀ wrong order", x=0, xanchor="left", font={"color": VERMILION}, **top)
    figure.add_annotation(text="right order ▶", x=1, xanchor="right", font={"color": BLUE}, **top)
    return styled(figure, x="r(chosen) \N{MINUS SIGN} r(rejected)", y="pairs", height=320)


def interval_chart(
    rows: Sequence[tuple[str, Interval]], *, x: str, baseline: float | None = None, limits: tuple[float, float] | None
) -> Any:
    """One row per label, from the top: the estimate as a dot, its interval as a bar.

    Args:
        rows: Label and interval; labels are shown as text, whatever they contain.
        x: Title of the axis.
        baseline: Where a dashed line marks "no better than".
        limits: Smallest and largest possible value; None fits the data.
    """
    labels = [literal(label, 20) for label, _ in rows]
    means = [interval.mean for _, interval in rows]
    figure = go.Figure(
        go.Scatter(
            x=means,
            y=list(range(len(rows))),
            mode="markers",
            marker={"color": BLUE, "size": 10},
            error_x=_whiskers([interval for _, interval in rows]),
            hovertemplate="%{x:.3f}<extra></extra>",
        )
    )
    if baseline is not None:
        figure.add_vline(x=baseline, line={"color": BLACK, "width": 1, "dash": "dash"})
    figure = styled(figure, x=x, y="", height=90 + 34 * len(rows))
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=labels, range=[len(rows) - 0.5, -0.5])
    # A little beyond the ends, so that a dot on the end is a whole dot.
    return figure if limits is None else figure.update_xaxes(range=[limits[0] - 0.03, limits[1] + 0.03])


def bucket_label(bucket: LengthBucket) -> str:
    """What a bucket of length differences holds, in words."""
    if bucket.low == bucket.high == 0:
        return "equal length"
    near, far = sorted((abs(bucket.low), abs(bucket.high)))
    span = f"{near}" if near == far else f"{near} to {far}"
    return f"{'shorter' if bucket.high < 0 else 'longer'} by {span}"


def reliability_chart(calibration: Calibration) -> Any:
    """Accuracy against stated confidence; a calibrated model is on the diagonal."""
    bins = calibration.bins
    figure = go.Figure(
        go.Scatter(x=[0.5, 1], y=[0.5, 1], mode="lines", line={"color": BLACK, "width": 1, "dash": "dash"})
    )
    figure.add_scatter(
        x=[b.confidence for b in bins],
        y=[b.accuracy.mean for b in bins],
        error_y=_whiskers([b.accuracy for b in bins]),
        customdata=[b.pairs for b in bins],
        mode="lines+markers",
        line={"color": BLUE, "width": 2},
        marker={"size": 9},
        hovertemplate="confidence %{x:.2f}, accuracy %{y:.2f}, %{customdata} pairs<extra></extra>",
    )
    figure = styled(figure, x="confidence: sigmoid(|score difference|)", y="accuracy", height=340)
    floor = min([0.4, *(b.accuracy.low - 0.05 for b in bins if b.accuracy.is_defined)])
    return figure.update_xaxes(range=[0.48, 1.02]).update_yaxes(range=[max(-0.02, floor), 1.02])


def length_chart(bias: LengthBias) -> Any:
    """Mean score of responses by their length, chosen and rejected together."""
    labels = [f"{b.low}" if b.low == b.high else f"{b.low}\N{EN DASH}{b.high}" for b in bias.bins]
    figure = go.Figure(
        go.Scatter(
            x=labels,
            y=[b.score.mean for b in bias.bins],
            error_y=_whiskers([b.score for b in bias.bins]),
            customdata=[b.responses for b in bias.bins],
            mode="lines+markers",
            line={"color": ORANGE, "width": 2},
            marker={"size": 9},
            hovertemplate="%{x} tokens: %{y:.3f} (%{customdata} responses)<extra></extra>",
        )
    )
    figure = styled(figure, x="tokens of the response", y="mean score", height=330)
    return figure.update_xaxes(type="category", tickangle=-45)


def comparison_chart(rows: Sequence[tuple[str, Interval]]) -> Any:
    """Accuracy of the model beside accuracy of the length rule, chance dashed."""
    figure = interval_chart(rows, x="share of pairs", baseline=0.5, limits=(0, 1))
    return figure.update_traces(marker={"color": [BLUE, ORANGE, GREEN][: len(rows)]})


def _whiskers(intervals: Sequence[Interval]) -> dict[str, Any]:
    up = [i.high - i.mean if i.is_defined else 0.0 for i in intervals]
    down = [i.mean - i.low if i.is_defined else 0.0 for i in intervals]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": DIM, "thickness": 1.5}
