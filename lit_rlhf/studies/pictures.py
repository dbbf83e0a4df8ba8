"""A study's pictures: PNG files for documents, by matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from lit_rlhf.reports.palette import BLACK, SEQUENCE
from lit_rlhf.reports.plots import Panel, add_legend, draw_panels, dress, new_figure, save_figure
from lit_rlhf.reports.run_data import load_run
from lit_rlhf.reports.run_figures import score_shares
from lit_rlhf.studies.findings import frontier_fit, frontier_points
from lit_rlhf.studies.plan import Figure, Study
from lit_rlhf.studies.results import Results, frontier_starts, quality_points, seed_folder
from lit_rlhf.studies.words import heading, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points: TypeAlias = Sequence[tuple[float, float]]


def write_pictures(study: Study, results: Results, out: Path) -> list[Path]:
    """Write ``figure<N>.png`` of every figure whose arms have run: its curves.

    Beside it ``figure<N>-frontier.png`` (frontier and quality) and ``figure<N>-scores.png`` (scores over time) of the
    figures that have them.

    Raises:
        ImportError: matplotlib, an extra, is not installed.
    """
    paths = []
    for number, figure in enumerate(study.figures, start=1):
        name = f"figure{number}"
        paths += _curves(study, figure, results, out / f"{name}.png")
        paths += _points(study, figure, results, out, out / f"{name}-frontier.png")
        paths += _scores(study, figure, results, out, out / f"{name}-scores.png")
    return paths


def _curves(study: Study, figure: Figure, results: Results, path: Path) -> list[Path]:
    logs = {
        study.title(arm): [{m: {float(i): v for i, v in c.items()} for m, c in run.items()} for run in runs.values()]
        for arm in figure.arms
        if (runs := results.get(arm))
    }
    known = {measure for runs in logs.values() for run in runs for measure in run}
    panels = [Panel(metric=m, title=heading(m)) for m in figure.panels if m in known]
    return [draw_panels(logs, path, panels=panels, x_label="iteration", title=figure.title)] if panels else []


def _points(study: Study, figure: Figure, results: Results, out: Path, path: Path) -> list[Path]:
    drawings: list[Callable[[Axes], None]] = []
    if figure.frontier:
        kl, score = figure.frontier
        starts = frontier_starts(study, score, out)
        frontier = {arm: frontier_points(results.get(arm, {}), kl, score, starts) for arm in figure.arms}
        if any(frontier.values()):
            drawings.append(lambda ax: _draw_frontier(ax, study, figure, frontier, known=bool(starts)))
    if figure.quality and (given := quality_points(study, figure.quality, results, out)):
        drawings.append(lambda ax: _draw_quality(ax, study, figure, given))
    if not drawings:
        return []
    picture = new_figure(width=4.5 * len(drawings), height=3.6)
    axes = picture.subplots(1, len(drawings), squeeze=False).flatten()
    for draw, ax in zip(drawings, axes, strict=True):
        draw(ax)
    handles, labels = axes[0].get_legend_handles_labels()
    add_legend(picture, dict(zip(labels, handles, strict=True)))
    return [save_figure(picture, path, title=figure.title)]


def _draw_frontier(ax: Axes, study: Study, figure: Figure, frontier: Mapping[str, Points], *, known: bool) -> None:
    """``known``: scores are those above the start's, which is 0."""
    for place, (arm, points) in enumerate(frontier.items()):
        if not points:
            continue
        color, (x, y) = SEQUENCE[place % len(SEQUENCE)], zip(*points, strict=True)
        ax.scatter(x, y, color=color, s=14, alpha=0.7, linewidths=0, label=study.title(arm))
        fit = frontier_fit(points, start=0.0 if known else None)
        if fit is not None:
            grid = [max(x) * k / 60 for k in range(1, 61)]
            ax.plot(grid, [fit.at(d) for d in grid], color=color, linewidth=2)
    kl, score = map(heading, figure.frontier)
    above = " above the opponents'" if known else ""
    dress(ax, f"{score}{above}; lines: Gao et al. 2022")
    ax.set_xlabel(f"square root of {kl}", color=BLACK)


def _draw_quality(ax: Axes, study: Study, figure: Figure, given: Mapping[str, Points]) -> None:
    assert figure.quality is not None
    for arm, points in given.items():
        x, y = zip(*points, strict=True)
        ax.scatter(x, y, color=SEQUENCE[figure.arms.index(arm) % len(SEQUENCE)], s=40, label=study.title(arm))
    dress(ax, f"{figure.quality.at.capitalize()} of {heading(figure.quality.y)}")
    ax.set_xlabel(figure.quality.label or figure.quality.x, color=BLACK)


def _scores(study: Study, figure: Figure, results: Results, out: Path, path: Path) -> list[Path]:
    """Maps of the scores' density over iterations, the first seed of each arm."""
    found = {}
    for arm in figure.arms if figure.distributions else []:
        for seed in sorted(results.get(arm, {}))[:1]:
            shares = score_shares(load_run(seed_folder(out, seed) / arm))
            if shares is not None:
                found[f"{study.title(arm)}, seed {seed}"] = shares
    if not found:
        return []
    picture = new_figure(width=4.5 * len(found), height=3.4)
    axes = picture.subplots(1, len(found), squeeze=False, sharey=True).flatten()
    for (name, shares), ax in zip(found.items(), axes, strict=True):
        dress(ax, name)
        ax.grid(visible=False)
        drawn = ax.pcolormesh(shares.iterations, shares.scores, shares.density, cmap="cividis", shading="nearest")
        picture.colorbar(drawn, ax=ax, format="{x:.0%}", label="share of responses" if ax is axes[-1] else "")
        ax.set_xlabel("iteration", color=BLACK)
    axes[0].set_ylabel(unit("val/score"), color=BLACK)
    return [save_figure(picture, path, title="Scores over time")]
