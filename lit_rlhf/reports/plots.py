"""The four panels of the paper's figures (score, response length, KL, perplexity) from the CSV logs of runs.

Score and loss alone do not tell whether PPO is going well; these four together do (paper, section 5.2).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lit_rlhf.reports.palette import BLACK, DIM, GRID, LINE, SEQUENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series: TypeAlias = dict[float, float]
"""Values of one metric by where they were logged (epoch or step), in that order."""

_DASHES = ("-", "--", "-.", ":")  # a second cue beside color, for print and for color blindness


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One metric on one pair of axes.

    Attributes:
        metric: Its name in the logs.
        title: What stands above the panel, unit included.
    """

    metric: str
    title: str


SCORE = Panel(metric="rollout/score", title="Reward model score")
LENGTH = Panel(metric="rollout/response_length", title="Response length (tokens)")
KL = Panel(metric="rollout/kl", title="KL to the reference (nats per token)")
PERPLEXITY = Panel(metric="rollout/perplexity", title="Perplexity of the responses")
GOLD = Panel(metric="val/gold", title="Gold score, held-out prompts")
PAPER_PANELS = (SCORE, LENGTH, KL, PERPLEXITY)


def read_metrics(path: str | Path, *, x: str = "epoch") -> dict[str, Series]:
    """Every metric of a ``metrics.csv`` as Lightning's ``CSVLogger`` writes it.

    Rows hold some of the columns, empty cells are skipped, and of several values at one place the last stays (what a
    resumed run logs again replaces what it logged before).

    Args:
        path: The CSV file.
        x: The column that says where a row belongs: "epoch" (an iteration of PPO) or "step" (an update).

    Returns:
        Series by metric; values that are not finite are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the column ``x`` is missing or a cell is not a number.
    """
    metrics: dict[str, Series] = {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if x not in (reader.fieldnames or ()):
            raise ValueError(f"{path}: no column {x!r}; the columns are {', '.join(reader.fieldnames or ['(none)'])}.")
        for row in reader:
            place = _number(row.pop(x), path=path, line=reader.line_num, column=x)
            for name, cell in row.items():
                value = _number(cell, path=path, line=reader.line_num, column=name)
                if place is not None and value is not None:
                    metrics.setdefault(name, {})[place] = value
    return {name: dict(sorted(series.items())) for name, series in metrics.items()}


def plot_panels(
    runs: Mapping[str, Sequence[str | Path]],
    out: str | Path,
    *,
    panels: Sequence[Panel] = PAPER_PANELS,
    x: str = "epoch",
    x_label: str = "iteration",
    title: str = "",
) -> Path:
    """Draws the panels, two a row, one color a run, and writes a PNG.

    A run of several seeds has a thin line a seed, their mean as a thick line, and a band from the lowest to the
    highest seed. Mean and band end where the first seed ends: beyond, they would compare different seeds.

    Args:
        runs: The ``metrics.csv`` files of each run's seeds by the run's name, at most seven runs.
        out: The PNG file; missing folders are made.
        panels: What is drawn.
        x: Column that is the horizontal axis.
        x_label: Its name on the figure.
        title: A line above all; may be empty.

    Returns:
        ``out`` as a path.

    Raises:
        FileNotFoundError: If a log is missing.
        ValueError: If there are no runs or too many, or no run has a panel's metric; lists those there are.
        ImportError: If matplotlib, an extra, is not installed.
    """
    logs = {name: [read_metrics(path, x=x) for path in paths] for name, paths in runs.items()}
    return draw_panels(logs, out, panels=panels, x_label=x_label, title=title)


def draw_panels(
    logs: Mapping[str, Sequence[Mapping[str, Series]]],
    out: str | Path,
    *,
    panels: Sequence[Panel],
    x_label: str = "iteration",
    title: str = "",
) -> Path:
    """The picture of :func:`plot_panels` from series that are already read: by run's name, a mapping a seed.

    Raises:
        ValueError: See :func:`plot_panels`.
        ImportError: If matplotlib, an extra, is not installed.
    """
    _check(logs, panels)
    rows = math.ceil(len(panels) / 2)
    figure = new_figure(width=9.0, height=0.9 + 2.7 * rows)
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for place, panel in enumerate(panels):
        _draw_panel(axes[place], panel, logs)
    for unused in axes[len(panels) :]:
        unused.remove()
    for bottom in axes[max(0, len(panels) - 2) : len(panels)]:
        bottom.set_xlabel(x_label, color=BLACK)
    lines = {line.get_label(): line for ax in axes[: len(panels)] for line in ax.lines if line.get_label() in logs}
    shown = {name: len(seeds) for name, seeds in logs.items() if name in lines}
    counts = sorted(set(shown.values()))
    alone = len(counts) == 1
    add_legend(
        figure,
        {name if alone or n == 1 else f"{name} ({n} seeds)": lines[name] for name, n in shown.items()},
        note="" if counts == [1] else f"mean and range of {counts[0]} seeds" if alone else "mean and range over seeds",
    )
    return save_figure(figure, out, title=title)


def new_figure(*, width: float, height: float) -> Figure:
    """An empty matplotlib figure in the look of all pictures, in inches; it needs no display.

    Raises:
        ImportError: If matplotlib, an extra, is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'lit-rlhf[plots]'.") from error
    figure = Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor="white")
    figure.get_layout_engine().set(h_pad=0.08)  # type: ignore[union-attr, call-arg]
    return figure


def add_legend(figure: Figure, entries: Mapping[str, Any], *, note: str = "") -> None:
    """A legend below all, as many entries a row as the figure is wide enough for; ``note`` stands above it."""
    longest = max(map(len, entries), default=1)
    columns = int(11 * figure.get_figwidth() // (longest + 7))  # eleven characters an inch, and seven for a line
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=max(1, min(columns, len(entries))),
        frameon=False,
        title=note or None,
    )


def dress(ax: Axes, title: str) -> None:
    """Give a pair of axes its title and the look of all pictures."""
    ax.set_title(title, loc="left", fontsize=10.5, color=BLACK)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(LINE)
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9, color=LINE, labelcolor=DIM)


def save_figure(figure: Figure, out: str | Path, *, title: str = "") -> Path:
    """Write a figure as PNG, below a line that may be empty; missing folders are made."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=BLACK)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(str(out), format="png", metadata={"Software": None})
    return out


def _draw_panel(ax: Axes, panel: Panel, logs: Mapping[str, Sequence[Mapping[str, Series]]]) -> None:
    for place, (name, seeds) in enumerate(logs.items()):
        series = [seed[panel.metric] for seed in seeds if panel.metric in seed]
        if series:
            _draw_run(ax, name, series, color=SEQUENCE[place], dashes=_DASHES[place % len(_DASHES)])
    dress(ax, panel.title)
    ax.margins(x=0.02)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.locator_params(axis="x", integer=True)


def _draw_run(ax: Axes, name: str, series: Sequence[Series], *, color: str, dashes: str) -> None:
    shared = sorted(set.intersection(*(set(one) for one in series)))
    columns = [[one[place] for one in series] for place in shared]
    means = [sum(column) / len(column) for column in columns]
    marker = "o" if len(shared) == 1 else None  # a line through one point cannot be seen
    ax.plot(shared, means, color=color, linestyle=dashes, linewidth=2, label=name, marker=marker, zorder=3)
    if len(series) > 1:
        lows, highs = [min(column) for column in columns], [max(column) for column in columns]
        ax.fill_between(shared, lows, highs, color=color, alpha=0.15, linewidth=0)
        for one in series:
            ax.plot(list(one), list(one.values()), color=color, linewidth=0.7, alpha=0.5, label="_seed")


def _check(logs: Mapping[str, Sequence[Mapping[str, Series]]], panels: Sequence[Panel]) -> None:
    if not 1 <= len(logs) <= len(SEQUENCE):
        raise ValueError(f"`runs` ({len(logs)}) must have between 1 and {len(SEQUENCE)} entries.")
    if not panels:
        raise ValueError("`panels` must have at least one entry.")
    known = {metric for seeds in logs.values() for seed in seeds for metric in seed}
    missing = [panel.metric for panel in panels if panel.metric not in known]
    if missing:
        raise ValueError(f"No run has the metric {missing[0]!r}; there are {', '.join(sorted(known)) or 'none'}.")


def _number(cell: str | None, *, path: str | Path, line: int, column: str) -> float | None:
    if cell is None or not cell.strip():
        return None
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"{path}:{line}: column {column!r} is not a number: {cell!r:.60}.") from None
    return value if math.isfinite(value) else None
