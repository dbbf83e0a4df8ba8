"""A study's page and its tables."""

from __future__ import annotations

import math
from collections import Counter
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
from lit_rlhf.reports.run_data import load_run
from lit_rlhf.reports.run_figures import distribution_figure
from lit_rlhf.studies.detector import detector_cells
from lit_rlhf.studies.findings import VERDICTS, Finding, frontier_fit, frontier_points
from lit_rlhf.studies.plan import At, Figure, Study
from lit_rlhf.studies.results import Curve, Results, frontier_starts, quality_points, seed_folder, summary
from lit_rlhf.studies.words import heading, unit

DETECTOR = "Collapse detector, default constants"
_SHOWN: tuple[At, ...] = ("peak", "end", "fall")


def write_page(study: Study, results: Results, found: Sequence[Finding], out: Path, *, notes: Sequence[str]) -> None:
    """Write ``study.html``: verdicts, what the collapse detector saw, and each figure's findings, charts, numbers."""
    figures = [
        {
            "title": figure.title,
            "findings": finding_cells(study, [each for each in found if each.figure == figure.title]),
            "charts": charts(study, figure, results, out),
            "tables": tables(study, figure, results),
        }
        for figure in study.figures
    ]
    text = page.render(
        "study",
        title="Study",
        notes=notes,
        verdicts=verdict_cells(found),
        detector_title=DETECTOR,
        detector=detector_cells(study, results),
        figures=figures,
    )
    write_text(out / "study.html", text)


def write_markdown(study: Study, results: Results, found: Sequence[Finding], out: Path, *, notes: Sequence[str]) -> str:
    """Write ``study.md`` with what the page has but its charts; the text."""
    parts = ["\n".join(notes), markdown_table(*verdict_cells(found))]
    header, rows = detector_cells(study, results)
    if rows:
        parts += [f"**{DETECTOR}**", markdown_table(header, rows)]
    for figure in study.figures:
        claims = [each for each in found if each.figure == figure.title]
        parts += [f"**{figure.title}**", markdown_table(*finding_cells(study, claims))]
        parts += [
            f"{caption}\n\n{markdown_table(header, rows)}" for caption, header, rows in tables(study, figure, results)
        ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    write_text(out / "study.md", text)
    return text


def verdict_cells(found: Sequence[Finding]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header, a row a figure with the numbers of its claims by verdict, and a row for all; no rows without claims."""
    header = ("figure", *VERDICTS, "not run")
    counts: dict[str, Counter[str]] = {}
    for each in found:
        counts.setdefault(each.figure, Counter())[each.verdict if each.differences else "not run"] += 1
    if not counts:
        return header, []
    rows = {**counts, "all figures": sum(counts.values(), Counter[str]())}
    return header, [(name, *(str(count[key] or "") for key in header[1:])) for name, count in rows.items()]


def finding_cells(study: Study, found: Sequence[Finding]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header and one row a claim."""
    header = ("claim", "measured", "difference", "seeds", "verdict")
    rows: list[Sequence[str]] = []
    for each in found:
        claim = each.claim
        measured = f"{claim.at} of {claim.measure}: {study.title(claim.arm)} less {study.title(claim.against)}"
        seeds = str(len(each.differences))
        rows.append((claim.says, measured, _interval(each.interval), seeds, each.verdict))
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
            out.append((f"{heading(measure)}: mean over seeds (lowest to highest)", ("arm", "seeds", *_SHOWN), rows))
    return out


def charts(study: Study, figure: Figure, results: Results, out: Path) -> list[Chart]:
    """A chart a panel that some run has, the frontier, the quality's, and the scores over time."""
    found = [Chart(heading(m), drawn) for m in figure.panels if (drawn := _panel(study, figure, results, m))]
    if figure.frontier and (drawn := _frontier(study, figure, results, out)):
        found.append(Chart(f"{figure.frontier[1]} over the square root of {figure.frontier[0]}", drawn))
    if figure.quality and (given := quality_points(study, figure.quality, results, out)):
        found.append(_quality(study, figure, given))
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
    drawn = styled(drawn, x="iteration", y=unit(measure), height=320)
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


def _frontier(study: Study, figure: Figure, results: Results, out: Path) -> Any:
    """All measurements of the arms, and the fit through each arm's."""
    drawn, (kl, score) = go.Figure(), figure.frontier
    starts = frontier_starts(study, score, out)
    for place, arm in enumerate(figure.arms):
        points = frontier_points(results.get(arm, {}), kl, score, starts)
        if not points:
            continue
        color, name = SEQUENCE[place % len(SEQUENCE)], literal(study.title(arm))
        x, y = zip(*points, strict=True)
        drawn.add_scatter(x=x, y=y, mode="markers", name=name, marker={"color": color, "size": 6, "opacity": 0.6})
        fit = frontier_fit(points, start=0.0 if starts else None)
        if fit is not None:
            highest = max(x)
            grid = [highest * k / 60 for k in range(1, 61)]
            drawn.add_scatter(
                x=grid, y=[fit.at(d) for d in grid], mode="lines", name=name, showlegend=False, line={"color": color}
            )
    if not drawn.data:
        return None
    above = " above the opponents'" if starts else ""
    drawn = styled(drawn, x=f"square root of {kl}", y=f"{unit(score) or score}{above}", height=360)
    return drawn.update_layout(
        showlegend=True, legend={"orientation": "h", "y": -0.25, "x": 0, "font": {"color": BLACK}}
    )


def _quality(study: Study, figure: Figure, given: Mapping[str, Sequence[tuple[float, float]]]) -> Chart:
    """A point an arm and seed."""
    assert figure.quality is not None
    drawn, (x, y) = go.Figure(), (figure.quality.x, figure.quality.y)
    for arm, points in given.items():
        places, values = zip(*points, strict=True)
        marker = {"color": SEQUENCE[figure.arms.index(arm) % len(SEQUENCE)], "size": 10}
        drawn.add_scatter(x=places, y=values, mode="markers", name=literal(study.title(arm)), marker=marker)
    drawn = styled(drawn, x=figure.quality.label or x, y=unit(y) or y, height=360)
    drawn.update_layout(showlegend=True, legend={"orientation": "h", "y": -0.25, "x": 0})
    return Chart(f"{figure.quality.at.capitalize()} of {heading(y)} over {x}", drawn)


def _interval(value: Interval) -> str:
    if math.isnan(value.mean):
        return "not run"
    ends = f" [{value.low:+.3g}, {value.high:+.3g}]" if value.is_defined else ""
    return f"{value.mean:+.3g}{ends}"


def _range(values: Sequence[float]) -> str:
    middle = f"{mean(values):.3g}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3g} to {max(values):.3g})"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Empty where there are no rows."""
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (header, *rows)]
    rule = " | ".join("---" for _ in header)
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:])) if rows else ""
