"""Pictures of comparisons: the paper's Figures 10 and 11 (win, tie, lose), win rate by length, and Figure 12 (tax)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from lit_rlhf.evaluation.comparison import length
from lit_rlhf.evaluation.intervals import Interval, bootstrap
from lit_rlhf.evaluation.tax import Measurement
from lit_rlhf.evaluation.verdicts import Judged
from lit_rlhf.evaluation.win_rate import WinRate
from lit_rlhf.reports.figures import literal, styled
from lit_rlhf.reports.palette import BLACK, BLUE, DIM, GRID, ORANGE, PURPLE, SEQUENCE, SKY, VERMILION

LENGTH_BINS = 6
_LIGHT = {SEQUENCE.index(color) for color in (ORANGE, PURPLE, SKY)}  # white text on these cannot be read
_PARTS = (("win", BLUE, "white"), ("tie", GRID, BLACK), ("lose", VERMILION, "white"))
_HALF = {"win": 1.0, "tie": 0.5, "lose": 0.0}


def shares_chart(rates: Sequence[tuple[str, WinRate]]) -> Any:
    """Stacked win, tie and lose shares, one bar per label from the top (Figures 10 and 11 of the paper).

    Args:
        rates: Label and win rate; labels are shown as text, whatever they contain.
    """
    labels = [literal(label, 28) for label, _ in rates]
    figure = go.Figure()
    for part, color, ink in _PARTS:
        shares = [100 * getattr(rate, part) for _, rate in rates]
        figure.add_bar(
            x=shares,
            y=list(range(len(rates))),
            orientation="h",
            name=part,
            text=[f"{part} {share:.0f}" if share >= 9 else "" for share in shares],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            textfont={"color": ink},
            marker={"color": color, "line": {"color": "white", "width": 1}},
            hovertemplate=f"{part}: %{{x:.1f}} %<extra></extra>",
        )
    # What does not fit into its part at 10 px is left out, not shrunk.
    figure.update_layout(barmode="stack", uniformtext={"minsize": 10, "mode": "hide"})
    figure = styled(figure, x="percent of comparisons", y="", height=110 + 44 * len(rates))
    figure.update_xaxes(range=[0, 100])
    return figure.update_yaxes(tickvals=list(range(len(rates))), ticktext=labels, autorange="reversed", showgrid=False)


def length_chart(judged: Sequence[Judged]) -> Any:
    """Win rate, ties half, by how much longer the response is than the baseline's: equally many pairs a point."""
    figure = go.Figure()
    for place, each in enumerate(judged):
        color = SEQUENCE[place % len(SEQUENCE)]
        points = length_points(each)
        figure.add_scatter(
            x=[gap for gap, _ in points],
            y=[100 * rate.mean for _, rate in points],
            mode="lines+markers",
            name=literal(each.a, 28),
            line={"color": color},
            marker={"color": color, "size": 8},
            error_y=_whiskers([rate for _, rate in points], scale=100),
            hovertemplate="%{x:.0f} longer: %{y:.1f} %<extra></extra>",
        )
    figure.add_hline(y=50, line={"color": BLACK, "width": 1, "dash": "dash"})
    figure = styled(figure, x="response longer than the baseline's by", y="win %", height=320)
    return figure.update_layout(showlegend=len(judged) > 1, legend={"orientation": "h", "y": 1.12, "x": 0})


def length_points(judged: Judged) -> list[tuple[float, Interval]]:
    """Mean difference of lengths and win rate of each of equally large parts of the pairs, shortest first."""
    rows = sorted((length(pair.a) - length(pair.b), _HALF[verdict.outcome]) for pair, verdict in judged.rows())
    number = min(LENGTH_BINS, len(rows))
    edges = [round(i * len(rows) / number) for i in range(number + 1)]
    parts = [rows[low:high] for low, high in itertools.pairwise(edges) if high > low]
    return [(sum(g for g, _ in part) / len(part), bootstrap([y for _, y in part])) for part in parts]


def tax_chart(measured: Measurement, models: Sequence[str]) -> Any:
    """One bar a model with the interval of its mean (Figure 12 of the paper)."""
    values = [measured.values[model] for model in models]
    figure = go.Figure(
        go.Bar(
            x=list(range(len(models))),
            y=[value.mean for value in values],
            marker={"color": [SEQUENCE[i % len(SEQUENCE)] for i in range(len(models))]},
            error_y=_whiskers(values),
            text=[f"{value.mean:.3f}" for value in values],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            textfont={"color": [BLACK if i % len(SEQUENCE) in _LIGHT else "white" for i in range(len(models))]},
            hovertemplate="%{y:.4f}<extra></extra>",
        )
    )
    unit = "nats per token: lower is better" if measured.lower_is_better else f"{measured.unit}: higher is better"
    figure = styled(figure, x="", y=unit, height=320)
    highest = max([value.high for value in values if value.is_defined] or [value.mean for value in values])
    figure.update_yaxes(range=[0, 1.12 * highest if highest > 0 else 1])
    return figure.update_xaxes(tickvals=list(range(len(models))), ticktext=[literal(m, 20) for m in models])


def _whiskers(intervals: Sequence[Interval], *, scale: float = 1.0) -> Mapping[str, Any]:
    known = [i if i.is_defined else Interval(i.mean, i.mean, i.mean) for i in intervals]
    return {
        "type": "data",
        "symmetric": False,
        "array": [scale * (i.high - i.mean) for i in known],
        "arrayminus": [scale * (i.mean - i.low) for i in known],
        "color": DIM,
        "thickness": 1.5,
    }
