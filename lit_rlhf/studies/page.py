"""A study's page, table and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import plotly.graph_objects as go

from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.files import write_text
from lit_rlhf.reports import page
from lit_rlhf.reports.figures import Chart, literal, styled
from lit_rlhf.reports.palette import BLACK, DASHES, SEQUENCE
from lit_rlhf.reports.plots import Panel, draw_panels
from lit_rlhf.reports.run_data import load_run
from lit_rlhf.reports.run_figures import distribution_figure
from lit_rlhf.studies.findings import Finding, frontier_fit, frontier_points
from lit_rlhf.studies.plan import At, Figure, Study
from lit_rlhf.studies.results import Curve, Results, seed_folder, summary

_UNITS = {
    "win": "win % over the opponents",
    "val/score": "reward model's score",
    "val/gold": "gold score",
    "val/response_length": "tokens",
    "val/kl": "nats per token",
    "val/perplexity": "perplexity",
}
_SHOWN: tuple[At, ...] = ("peak", "end", "fall")


def write_page(study: Study, results: Results, found: Sequence[Finding], out: Path, *, notes: Sequence[str]) -> None:
    """Write ``study.html``: the findings, then every figure with its charts and the arms' numbers."""
    figures = [
        {"title": f.title, "charts": charts(study, f, results, out), "tables": tables(study, f, results)}
        for f in study.figures
    ]
    header, rows = finding_cells(study, found)
    text = page.render("study", title="Study", notes=notes, header=header, rows=rows, figures=figures)
    write_text(out / "study.html", text)


def write_markdown(study: Study, results: Results, found: Sequence[Finding], out: Path, *, notes: Sequence[str]) -> str:
    """Write ``study.md``: the findings and a table a figure; the text."""
    parts = ["\n".join(notes), _markdown(*finding_cells(study, found))]
    for figure in study.figures:
        parts.append(f"**{figure.title}**")
        parts += [f"{caption}\n\n{_markdown(header, rows)}" for caption, header, rows in tables(study, figure, results)]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(out / "study.md", text)
    return text


def write_pictures(study: Study, results: Results, out: Path) -> list[Path]:
    """Write ``figure<N>.png`` of every figure whose arms have run.

    Raises:
        ImportError: matplotlib, an extra, is not installed.
    """
    paths = []
    for number, figure in enumerate(study.figures, start=1):
        logs = {
            study.title(arm): [
                {m: {float(i): v for i, v in c.items()} for m, c in run.items()} for run in runs.values()
            ]
            for arm in figure.arms
            if (runs := results.get(arm))
        }
        known = {measure for runs in logs.values() for run in runs for measure in run}
        panels = [Panel(metric=m, title=_heading(m)) for m in figure.panels if m in known]
        if panels:
            path = out / f"figure{number}.png"
            paths.append(draw_panels(logs, path, panels=panels, x_label="iteration", title=figure.title))
    return paths


def finding_cells(study: Study, found: Sequence[Finding]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header and one row a claim."""
    header = ("figure", "claim", "measured", "difference", "seeds", "verdict")
    rows: list[Sequence[str]] = []
    for each in found:
        claim = each.claim
        measured = f"{claim.at} of {claim.measure}: {study.title(claim.arm)} less {study.title(claim.against)}"
        seeds = str(len(each.differences))
        rows.append((each.figure, claim.says, measured, _interval(each.interval), seeds, each.verdict))
    return header, rows


def tables(study: Study, figure: Figure, results: Results) -> list[tuple[str, Sequence[str], list[Sequence[str]]]]:
    """Caption, header and rows of each panel's measure: peak, end and fall of every arm, mean and range over seeds."""
    out: list[tuple[str, Sequence[str], list[Sequence[str]]]] = []
    for measure in figure.panels:
        rows: list[Sequence[str]] = []
        for arm in figure.arms:
            curves = [run[measure] for run in results.get(arm, {}).values() if run.get(measure)]
            if curves:
                cells = (_range([summary(curve, at) for curve in curves]) for at in _SHOWN)
                rows.append((study.title(arm), str(len(curves)), *cells))
        if rows:
            out.append((f"{_heading(measure)}: mean over seeds (lowest to highest)", ("arm", "seeds", *_SHOWN), rows))
    return out


def charts(study: Study, figure: Figure, results: Results, out: Path) -> list[Chart]:
    """A chart a panel that some run has, the frontier, and the scores over time."""
    found = [Chart(_heading(m), drawn) for m in figure.panels if (drawn := _panel(study, figure, results, m))]
    if figure.frontier and (drawn := _frontier(study, figure, results)):
        found.append(Chart(f"{figure.frontier[1]} over the square root of {figure.frontier[0]}", drawn))
    for arm in figure.arms if figure.distributions else []:
        for seed in sorted(results.get(arm, {}))[:1]:
            drawn = distribution_figure(load_run(seed_folder(out, seed) / arm))
            if drawn is not None:
                found.append(Chart(f"Scores over time: {study.title(arm)}, seed {seed}", drawn))
    return found


def _panel(study: Study, figure: Figure, results: Results, measure: str) -> Any:
    """A thin line a seed and a thick one for their mean, as long as all seeds go."""
    drawn = go.Figure()
    for place, arm in enumerate(figure.arms):
        curves = [run[measure] for run in results.get(arm, {}).values() if run.get(measure)]
        look = {"color": SEQUENCE[place % len(SEQUENCE)], "dash": DASHES[place % len(DASHES)]}
        for curve in curves if len(curves) > 1 else []:
            _add_line(drawn, curve, study.title(arm), look, width=0.7, opacity=0.45, legend=False)
        if curves:
            shared = set.intersection(*(set(curve) for curve in curves))
            _add_line(drawn, {i: mean(c[i] for c in curves) for i in shared}, study.title(arm), look, width=2.5)
    if not drawn.data:
        return None
    drawn = styled(drawn, x="iteration", y=_UNITS.get(measure, ""), height=320)
    return drawn.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.25, "x": 0})


def _add_line(
    drawn: Any,
    curve: Curve,
    name: str,
    look: Mapping[str, Any],
    *,
    width: float,
    opacity: float = 1,
    legend: bool = True,
) -> None:
    places = sorted(curve)
    drawn.add_scatter(
        x=places,
        y=[curve[i] for i in places],
        mode="lines" if len(places) > 1 else "markers",
        name=literal(name),
        legendgroup=literal(name),
        showlegend=legend,
        opacity=opacity,
        line={**look, "width": width},
        hovertemplate="%{x}: %{y:.3f}<extra>%{fullData.name}</extra>",
    )


def _frontier(study: Study, figure: Figure, results: Results) -> Any:
    """All measurements of the arms, and the fit through each arm's."""
    drawn, (kl, score) = go.Figure(), figure.frontier
    for place, arm in enumerate(figure.arms):
        points = sorted(frontier_points(list(results.get(arm, {}).values()), kl, score))
        if not points:
            continue
        color, name = SEQUENCE[place % len(SEQUENCE)], literal(study.title(arm))
        x, y = zip(*points, strict=True)
        drawn.add_scatter(x=x, y=y, mode="markers", name=name, marker={"color": color, "size": 6, "opacity": 0.6})
        fit = frontier_fit(points)
        if fit is not None:
            highest = max(x)
            grid = [highest * k / 60 for k in range(1, 61)]
            drawn.add_scatter(
                x=grid, y=[fit.at(d) for d in grid], mode="lines", name=name, showlegend=False, line={"color": color}
            )
    if not drawn.data:
        return None
    drawn = styled(drawn, x=f"square root of {kl}", y=_UNITS.get(score, score), height=360)
    return drawn.update_layout(
        showlegend=True, legend={"orientation": "h", "y": -0.25, "x": 0, "font": {"color": BLACK}}
    )


def _heading(measure: str) -> str:
    words = measure.removeprefix("val/").replace("_", " ").replace("rollout/", "rollouts: ")
    names = {"win": "Win rate", "kl": "KL to the reference"}
    unit = _UNITS.get(measure, "")
    name = names.get(words, words[:1].upper() + words[1:])
    return f"{name} ({unit})" if unit and unit != words else name


def _interval(value: Interval) -> str:
    if math.isnan(value.mean):
        return "not run"
    ends = f" [{value.low:+.3g}, {value.high:+.3g}]" if value.is_defined else ""
    return f"{value.mean:+.3g}{ends}"


def _range(values: Sequence[float]) -> str:
    middle = f"{mean(values):.3g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3g} to {max(values):.3g})"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (header, *rows)]
    rule = " | ".join("---" for _ in header)
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:])) if rows else ""
