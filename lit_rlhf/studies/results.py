"""What the runs of a study ended with: curves by arm and seed, as numbers and as one table."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from lit_rlhf.evaluation.answers import Answer, read_answers
from lit_rlhf.evaluation.comparison import Grouping, against_baseline
from lit_rlhf.evaluation.judges import ScoreJudge
from lit_rlhf.files import write_text
from lit_rlhf.reports.run_data import RunData, load_run
from lit_rlhf.studies.plan import At, Judging, Quality, Study, Task, done

Curve: TypeAlias = dict[int, float]
"""Values by the number of iterations done when they were measured."""
Results: TypeAlias = dict[str, dict[int, dict[str, Curve]]]
"""Curves by arm, seed and measure."""

WIN = "win"


def seed_folder(out: Path, seed: int) -> Path:
    """Where a seed's runs lie."""
    return out / f"seed{seed}"


def read_results(study: Study, out: Path) -> Results:
    """The curves of every arm that is done, arms in the study's order.

    Args:
        study: Checked.
        out: The study's folder.

    Raises:
        ValueError: A run's files cannot be read, or its answers are not to the opponents' prompts.
    """
    results: Results = {}
    for name in study.arms:
        for seed in study.seeds_of(name):
            here = seed_folder(out, seed)
            if done(study, Task(seed=seed, name=name), here):
                results.setdefault(name, {})[seed] = read_run(study, here, name)
    return results


def read_run(study: Study, here: Path, name: str) -> dict[str, Curve]:
    """One run's curves by measure: what it logged, and its win rates where the study has a judge."""
    run = load_run(here / name)
    # A rollout of iteration i is by the policy that i iterations made; a validation comes after its iteration.
    curves = {
        metric: {i + metric.startswith("val/"): value for i, value in series} for metric, series in run.series.items()
    }
    return {**curves, **(win_curves(study.judging, here, run) if study.judging else {})}


def win_curves(judging: Judging, here: Path, run: RunData) -> dict[str, Curve]:
    """Win rates in percent, ties half, of every saved validation; each is judged once and kept beside the run."""
    kept, files = run.path / "judged.json", sorted((run.path / "evaluations").glob("val-step*.jsonl"))
    key = [dataclasses.asdict(judging), [[path.name, path.stat().st_size] for path in files]]
    if kept.exists():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["of"] == key:
            return {name: {int(i): rate for i, rate in curve.items()} for name, curve in found["win"].items()}
    opponents = read_answers(here / judging.opponents)
    curves: dict[str, Curve] = {}
    for path in files:
        step = int(re.findall(r"step(\d+)", path.name)[-1])
        iteration = sum(start < step for _, start in run.starts)
        for name, rate in _rates(judging, read_answers(path), opponents).items():
            curves.setdefault(name, {})[iteration] = rate
    write_text(kept, json.dumps({"of": key, "win": curves}))
    return curves


def _rates(judging: Judging, answers: list[Answer], opponents: list[Answer]) -> dict[str, float]:
    judge = ScoreJudge(judging.score, tie_margin=judging.tie_margin)
    grouping = Grouping(cluster_by=tuple(judging.cluster_by), split_by=judging.split_by)
    found = against_baseline("arm", answers, opponents, judge, grouping=grouping)
    return {WIN if group == "all" else f"{WIN}/{group}": 100 * rate.rate for group, rate in found.win_rates.items()}


def summary(curve: Mapping[int, float], at: At) -> float:
    """One number of a curve: see :class:`~lit_rlhf.studies.plan.Claim`.

    Raises:
        ValueError: The curve is empty.
    """
    values = [curve[i] for i in sorted(curve)]
    if not values:
        raise ValueError("A curve without a point has no summary.")
    end = _mean(values[-max(1, len(values) // 10) :])
    if at == "end":
        return end
    if at == "peak":
        return max(values)
    if at == "fall":
        return max(values) - end
    if at == "early":
        return _mean(values[: max(1, len(values) // 4)])
    if at == "roughness":
        return _mean([abs(b - a) for a, b in itertools.pairwise(values)]) if len(values) > 1 else 0.0
    return _mean(values)


def frontier_starts(study: Study, measure: str, out: Path) -> dict[int, float]:
    """Mean score of the opponents' answers by seed: what ``val/<column>`` would be for them.

    Empty where the answers have no such column. Seeds without answers are skipped.

    Raises:
        ValueError: A seed's answers cannot be read.
    """
    if study.judging is None:
        return {}
    starts: dict[int, float] = {}
    for seed in study.seeds:
        answers = seed_folder(out, seed) / study.judging.opponents
        rows = [answer.row for answer in read_answers(answers)] if answers.exists() else []
        values = [row.get(measure.removeprefix("val/")) for row in rows]
        if None in values:
            return {}
        if values:
            starts[seed] = _mean([float(value) for value in values if value is not None])
    return starts


def quality_points(study: Study, quality: Quality, results: Results, out: Path) -> dict[str, list[tuple[float, float]]]:
    """``(quality, number)`` of every seed by arm; where the step is not done or logged no such metric, none."""
    points: dict[str, list[tuple[float, float]]] = {}
    for arm, step in quality.steps.items():
        for seed, run in sorted(results.get(arm, {}).items()):
            here = seed_folder(out, seed)
            if run.get(quality.y) and done(study, Task(seed=seed, name=step), here):
                series = load_run(here / step).series.get(quality.x)
                if series:
                    points.setdefault(arm, []).append((series[-1][1], summary(run[quality.y], quality.at)))
    return points


def unlogged_qualities(study: Study, results: Results, out: Path) -> list[str]:
    """``<step> has no <metric>`` of every quality whose arm ran and has no point."""
    told = []
    for figure in study.figures:
        if figure.quality is not None:
            found = quality_points(study, figure.quality, results, out)
            missing = (step for arm, step in figure.quality.steps.items() if results.get(arm) and arm not in found)
            told += [f"{step} has no {figure.quality.x}" for step in missing]
    return told


def write_table(results: Results, path: Path, *, measures: set[str]) -> None:
    """One row a seed, arm, measure and iteration, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["arm", "seed", "measure", "iteration", "value"])
    for arm, seeds in results.items():
        for seed, curves in sorted(seeds.items()):
            for measure in sorted(curves.keys() & measures):
                writer.writerows([arm, seed, measure, i, repr(v)] for i, v in sorted(curves[measure].items()))
    write_text(path, text.getvalue())


def measures_of(study: Study) -> set[str]:
    """Every measure that a figure or a claim names."""
    named: list[Any] = [WIN] if study.judging else []
    for figure in study.figures:
        named += [*figure.panels, *figure.frontier, *(claim.measure for claim in figure.claims)]
        named += [figure.quality.y] if figure.quality else []
    return set(named)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
