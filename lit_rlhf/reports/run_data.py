"""Reading a run directory into plain Python."""

from __future__ import annotations

import bisect
import csv
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLES = "samples.jsonl"
HISTOGRAMS = "reward_histograms.jsonl"
EVENTS = "collapse.jsonl"

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
        broken_lines: Lines of the three files that are not JSON, e.g. cut by a kill.
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
    broken_lines: int = 0

    def first(self, *names: str) -> list[tuple[int, float]]:
        """The first of ``names`` that was logged; empty when none was."""
        return next((self.series[name] for name in names if self.series.get(name)), [])


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
        ValueError: If there is no ``metrics.csv``.
    """
    root = Path(path)
    rows = _metric_rows(root)
    starts = _starts(rows)
    lines = {file: _json_lines(root / file) for file in (SAMPLES, HISTOGRAMS, EVENTS)}
    if not any(line.get("kind") == "fixed" for line in lines[SAMPLES][0]):
        lines[SAMPLES][0].extend(_evaluated(root))
    config, versions = root / "config.yaml", root / "versions.json"
    return RunData(
        name=name or root.resolve().name,
        path=root,
        series=_series(rows),
        starts=starts,
        samples=_last_of(_placed(lines[SAMPLES][0], starts), ("step", "kind", "index")),
        histograms=_last_of(_placed(lines[HISTOGRAMS][0], starts), ("step",)),
        events=_last_of(_placed(lines[EVENTS][0], starts), ("step",)),
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        versions=json.loads(versions.read_text(encoding="utf-8")) if versions.is_file() else {},
        broken_lines=sum(broken for _, broken in lines.values()),
    )


def _metric_rows(root: Path) -> list[Row]:
    """Rows of every ``metrics.csv``, those of later versions (resumed runs) last."""
    found = [root / "metrics.csv", *root.glob("csv/**/metrics.csv"), *root.glob("version_*/metrics.csv")]
    files = sorted({path for path in found if path.is_file()}, key=_version_of)
    if not files:
        raise ValueError(f"`RUN_DIR` ({root}) must have a metrics.csv, itself or in csv/version_*/; it has none.")
    rows = []
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            rows += [_numbers(row) for row in csv.DictReader(file)]
    return rows


def _version_of(path: Path) -> tuple[int, str]:
    number = re.search(r"version_(\d+)", str(path))
    return (int(number[1]) if number else -1, str(path))


def _numbers(row: dict[str, str]) -> Row:
    out = {}
    for key, text in row.items():
        try:
            out[key] = float(text)
        except (TypeError, ValueError):
            continue  # an empty cell, or a row that a kill cut short
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
            if key not in ("epoch", "step") and math.isfinite(value):
                cells.setdefault(key, {}).setdefault(epoch, {})[step] = value  # a resumed run's row wins
    return {
        key: [(epoch, sum(by_step.values()) / len(by_step)) for epoch, by_step in sorted(by_epoch.items())]
        for key, by_epoch in cells.items()
    }


def _json_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    if not path.is_file():
        return [], 0
    good, broken = [], 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            good.append(json.loads(line, parse_constant=lambda _: None))  # a browser knows no NaN
        except json.JSONDecodeError:
            broken += 1
    return good, broken


def _evaluated(root: Path, count: int = 8) -> list[dict[str, Any]]:
    """The first rows of every saved validation as fixed samples: texts and sums, no tokens."""
    out = []
    for path in sorted((root / "evaluations").glob("val-step*.jsonl")):
        step = int(re.findall(r"step(\d+)", path.name)[-1])
        for index, row in enumerate(_json_lines(path)[0][:count]):
            if not {"prompt", "response", "score", "ended", "tokens", "logprob", "ref_logprob"} <= row.keys():
                continue  # somebody else's file
            sequence = row["logprob"] - row["ref_logprob"]
            facts = {"step": step, "kind": "fixed", "index": index, "tokens": [], "columns": {}}
            shown = {key: row[key] for key in ("prompt", "response", "score", "ended")}
            kl = {"kl": sequence / max(1, row["tokens"]), "kl_sequence": sequence, "length": row["tokens"]}
            out.append({**facts, **shown, **kl})
    return out


def _placed(lines: list[dict[str, Any]], starts: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """``lines`` with ``at``: the iteration whose steps include the line's global step."""
    steps = [step for _, step in starts]
    out = []
    for line in lines:
        k = bisect.bisect_right(steps, int(line.get("step", 0))) - 1
        out.append({**line, "at": starts[max(0, k)][0] if starts else int(line.get("iteration", 0))})
    return out


def _last_of(lines: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The last line of each key, in order of step: a resumed run writes some lines again."""
    last = {tuple(line.get(key) for key in keys): line for line in lines}
    return sorted(last.values(), key=lambda line: int(line.get("step", 0)))
