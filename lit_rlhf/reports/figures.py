"""What the charts of both pages share: their look, and data's own words as plotly shows them literally."""

from __future__ import annotations

import html
from typing import Any, NamedTuple

from lit_rlhf.reports.palette import BLACK, GRID, LINE


class Chart(NamedTuple):
    """A plotly figure under its heading; the heading is the page's, so the figure has none."""

    title: str
    figure: Any


def styled(figure: Any, *, x: str, y: str, height: int = 280) -> Any:
    """``figure`` with the look that all charts share.

    Args:
        figure: The plotly figure; changed.
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        height: Pixels; the width is the page's.
    """
    axis = {"gridcolor": GRID, "linecolor": LINE, "zeroline": False, "automargin": True, "fixedrange": True}
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 12, "r": 14, "t": 28, "b": 12},
        showlegend=False,
        hovermode="closest",
        font={"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12, "color": BLACK},
        paper_bgcolor="white",
        plot_bgcolor="white",
    )
    figure.update_xaxes(title={"text": x, "standoff": 8}, **axis)
    return figure.update_yaxes(title={"text": y, "standoff": 8}, **axis)


def literal(text: str, limit: int = 60) -> str:
    """``text`` as plotly shows it character by character: plotly reads a subset of HTML in every text.

    Args:
        text: Words from data, or a run's name.
        limit: Characters kept; a cut text ends in an ellipsis.
    """
    return html.escape(text if len(text) <= limit else text[: limit - 1] + "…")
