"""Reading a run directory into plain Python."""

from __future__ import annotations

import bisect
import csv
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_rlhf.reports.run_lines import (
    is_evaluated,
    is_event,
    is_histogram,
    is_sample,
    read_bytes,
    read_lines,
    read_versions,
)

SAMPLES = "samples.jsonl"
HISTOGRAMS = "reward_histograms.jsonl"
EVENTS = "collapse.jsonl"
CONFIG = "config.yaml"
VERSIONS = "versions.json"

Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What one run left behind.

    Attributes:
        name: What the report calls it.
        path: Where it lies.
        series: Metric name to ``(iteration, value)`` pairs in order; the iteration is Lightning's epoch, and several
            values of one iteration are averaged.
        starts: First logged global step of every iteration, in order: ``(iteration, step)``.
        samples: Lines of ``samples.jsonl``, each with ``at``, its iteration; where none of them is fixed, rows of
            ``evaluations/val-step*.jsonl`` as well.
        histograms: Lines of ``reward_histograms.jsonl`` with ``at``.
        events: Lines of ``collapse.jsonl`` with ``at``.
        config: Text of ``config.yaml``, empty when there is none.
        versions: Package versions from ``versions.json``.
        skipped: What of the optional files was skipped, by file: lines that a kill cut or that are not what the
            callbacks write; one for a file that cannot be read at all.
    """

    name: str
    path: Path
    series: dict[str, list[tuple[int, float]]]
    starts: list[tuple[int, int]]
    samples: list[dict[str, Any]] = field(default_factory=list)
    histograms: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    skipped: Counter[str] = field(default_factory=Counter)


def name_runs(paths: Sequence[Path]) -> list[str]:
    """A short, distinct name a path: its folder's, with as many parents as distinctness needs."""
    parts = [path.resolve().parts for path in paths]
    longest = max((len(p) for p in parts), default=1)
    for depth in range(1, longest + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(p[-1:])} ({k + 1})" for k, p in enumerate(parts)]


def load_run(path: Path | str, *, name: str | None = None) -> RunData:
    """Read a run directory.

    Args:
        path: The directory.
        name: What to call it; default: its name.

    Raises:
        ValueError: If there is no ``metrics.csv``, or one that cannot be read.
    """
    root, skipped = Path(path), Counter[str]()
    rows = _metric_rows(root)
    starts = _starts(rows)
    samples = read_lines(root, SAMPLES, is_sample, skipped)
    if not any(line["kind"] == "fixed" for line in samples):
        samples += _evaluated(root, skipped)
    return RunData(
        name=name or root.resolve().name,
        path=root,
        series=_series(rows),
        starts=starts,
        samples=_last_of(_placed(samples, starts), ("step", "kind", "index")),
        histograms=_last_of(_placed(read_lines(root, HISTOGRAMS, is_histogram, skipped), starts), ("step",)),
        events=_last_of(_placed(read_lines(root, EVENTS, is_event, skipped), starts), ("step",)),
        config=read_bytes(root, CONFIG, skipped).decode(errors="replace"),
        versions=read_versions(root, VERSIONS, skipped),
        skipped=skipped,
    )


def _metric_rows(root: Path) -> list[Row]:
    """Rows of every ``metrics.csv``, those of later versions (resumed runs) last."""
    found = [root / "metrics.csv", *root.glob("csv/**/metrics.csv"), *root.glob("version_*/metrics.csv")]
    files = sorted({path for path in found if path.is_file()}, key=_version_of)
    if not files:
        raise ValueError(f"`RUN_DIR` ({root}) must have a metrics.csv, itself or in csv/version_*/; it has none.")
    rows = []
    for path in files:
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows += [_numbers(row) for row in csv.DictReader(file)]
        except (OSError, UnicodeError, csv.Error) as error:
            raise ValueError(
                f"`RUN_DIR` ({root}) must have a metrics.csv that can be read; {path}: {error}."
            ) from error
    return rows


def _version_of(path: Path) -> tuple[int, str]:
    number = re.search(r"version_(\d+)", str(path))
    return (int(number[1]) if number else -1, str(path))


def _numbers(row: dict[str, str]) -> Row:
    """The finite cells of a row."""
    out = {}
    for key, text in row.items():
        try:
            value = float(text)
        except (TypeError, ValueError):
            continue  # an empty cell, or a row that a kill cut short
        if math.isfinite(value):
            out[key] = value
    return out


def _starts(rows: list[Row]) -> list[tuple[int, int]]:
    first: dict[int, int] = {}
    for row in rows:
        if "epoch" in row and "step" in row:
            epoch, step = int(row["epoch"]), int(row["step"])
            first[epoch] = min(step, first.get(epoch, step))
    return sorted(first.items())


def _series(rows: list[Row]) -> dict[str, list[tuple[int, float]]]:
    cells: dict[str, dict[int, dict[int, float]]] = {}
    for row in rows:
        epoch, step = int(row.get("epoch", row.get("step", 0))), int(row.get("step", 0))
        for key, value in row.items():
            if key not in ("epoch", "step"):
                cells.setdefault(key, {}).setdefault(epoch, {})[step] = value  # a resumed run's row wins
    return {
        key: [(epoch, sum(by_step.values()) / len(by_step)) for epoch, by_step in sorted(by_epoch.items())]
        for key, by_epoch in cells.items()
    }


def _evaluated(root: Path, skipped: Counter[str], count: int = 8) -> list[dict[str, Any]]:
    """The first rows of every saved validation as fixed samples: texts and sums, no tokens."""
    out = []
    for path in sorted((root / "evaluations").glob("val-step*.jsonl")):
        step = int(re.sub(r"\D", "", path.stem) or 0)
        rows = read_lines(root, f"evaluations/{path.name}", is_evaluated, skipped)
        for index, row in enumerate(rows[:count]):
            ref = row.get("ref_logprob")  # absent without a reference
            kl = None if ref is None else (row["logprob"] - ref) / max(1, row["tokens"])
            facts = {"step": step, "kind": "fixed", "index": index, "tokens": [], "columns": {}}
            shown = {key: row.get(key) for key in ("prompt", "response", "score", "ended")}
            out.append({**facts, **shown, "kl": kl, "length": row["tokens"]})
    return out


def _placed(lines: list[dict[str, Any]], starts: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """``lines`` with ``at``: the iteration whose steps include the line's global step."""
    steps = [step for _, step in starts]
    out = []
    for line in lines:
        k = bisect.bisect_right(steps, line["step"]) - 1
        own = line.get("iteration")
        out.append({**line, "at": starts[max(0, k)][0] if starts else own if isinstance(own, int) else 0})
    return out


def _last_of(lines: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The last line of each key, in order of step: a resumed run writes some lines again."""
    last = {tuple(line[key] for key in keys): line for line in lines}
    return sorted(last.values(), key=lambda line: int(line["step"]))
