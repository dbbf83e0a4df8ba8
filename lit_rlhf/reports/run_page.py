"""The page of one run, or of several overlaid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_rlhf.files import write_text
from lit_rlhf.reports import page
from lit_rlhf.reports import run_figures as drawn
from lit_rlhf.reports.run_data import RunData, load_run, name_runs

MAX_FIXED_STEPS = 16  # validations whose fixed samples are kept, spread over the run
MAX_RANDOM = 24

_NOTE = (
    f"Line: median of {drawn.WINDOW} iterations where there are {2 * drawn.WINDOW} or more, and their range as a "
    "band; held-out panels show every validation as it was. A dotted line with a flag ⚑ is where the collapse detector "
    "spoke."
)


def write_report(run_dirs: Sequence[Path | str], out: Path | str, *, title: str = "") -> Path:
    """Write the report of one run, or of several overlaid.

    Args:
        run_dirs: Run directories; each has a ``metrics.csv`` of Lightning's CSVLogger, itself or in
            ``csv/version_*/``, and may have ``samples.jsonl``, ``reward_histograms.jsonl``, ``collapse.jsonl``,
            ``config.yaml`` and ``versions.json``.
        out: The HTML file.
        title: Heading; default: the runs' names.

    Returns:
        ``out``.

    Raises:
        ValueError: If a directory has no ``metrics.csv`` that can be read, or ``out`` is not named as a page.
    """
    paths, target = [Path(run_dir) for run_dir in run_dirs], Path(out)
    if target.suffix not in (".html", ".htm"):  # a slip must not write a page over a file of the run
        raise ValueError(f"`out` ({out}) must end in .html.")
    runs = [load_run(path, name=name) for path, name in zip(paths, name_runs(paths), strict=True)]
    write_text(target, render(runs, title=title or ", ".join(run.name for run in runs)))
    return target


def render(runs: Sequence[RunData], *, title: str) -> str:
    """The whole page; ``runs`` are at least one."""
    return page.render(
        "run",
        title=title,
        note=_NOTE,
        runs=[_facts(run, k) for k, run in enumerate(runs)],
        summary=[_summary(run) for run in runs],
        skipped=[f"{run.name}/{name} ({count})" for run in runs for name, count in sorted(run.skipped.items())],
        four=drawn.series_charts(runs, drawn.FOUR),
        held_out=drawn.series_charts(runs, drawn.held_out_panels(runs)),
        frontier=drawn.frontier_charts(runs),
        distributions=drawn.distribution_charts(runs),
        events=[(run.name, event["at"], _told(event)) for run in runs for event in run.events],
        inside=drawn.series_charts(runs, drawn.INSIDE),
        samples=[_samples(run, k) for k, run in enumerate(runs)] if any(run.samples for run in runs) else [],
    )


def _facts(run: RunData, k: int) -> dict[str, str]:
    versions = ", ".join(f"{name} {number}" for name, number in run.versions.items())
    look = {"color": drawn.color_of(k), "dash": drawn.dash_of(k)}
    return {"name": run.name, "config": run.config, "versions": versions, **look}


def _summary(run: RunData) -> list[str]:
    iterations = max((points[-1][0] + 1 for points in run.series.values() if points), default=0)
    flagged = ", ".join(f"iteration {event['at']}" for event in run.events) or "never"
    return [run.name, str(iterations), *(_ends(run.series.get(panel.name, [])) for panel in drawn.FOUR), flagged]


def _ends(points: list[tuple[int, float]]) -> str:
    return f"{points[0][1]:.3g} → {points[-1][1]:.3g}" if points else "not logged"


def _told(event: dict[str, Any]) -> str:
    """What the detector saw and did, in one sentence or two."""
    readings = event.get("readings") or {}
    words = [f"{name} {_change(readings[name])}" if name in readings else name for name in event["fired"]]
    return f"{', '.join(words)}; holding since iteration {event['since']}. {event.get('did') or ''}"


def _change(reading: dict[str, float | None]) -> str:
    now, before = (_short(reading.get(name)) for name in ("value", "baseline"))
    return f"{now} (was {before})"


def _short(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _samples(run: RunData, k: int) -> dict[str, Any]:
    fixed = [sample for sample in run.samples if sample["kind"] == "fixed"]
    steps = sorted({sample["step"] for sample in fixed})
    if len(steps) > MAX_FIXED_STEPS:
        picks = {round(i * (len(steps) - 1) / (MAX_FIXED_STEPS - 1)) for i in range(MAX_FIXED_STEPS)}
        steps = [steps[i] for i in sorted(picks)]
    kept = [sample for sample in fixed if sample["step"] in set(steps)]
    kept += [sample for sample in run.samples if sample["kind"] != "fixed"][-MAX_RANDOM:]
    return {"name": run.name, "color": drawn.color_of(k), "samples": kept}
