"""The page around the figures: one string, nothing loaded from anywhere."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from string import Template
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from lit_rlhf.reports import run_figures as panels
from lit_rlhf.reports.run_data import RunData, load_run, name_runs
from lit_rlhf.reports.script import SCRIPT
from lit_rlhf.reports.style import STYLE

PACKAGES = ("lit-rlhf", "torch", "lightning", "transformers", "deepspeed", "plotly")
MAX_FIXED_STEPS = 16  # validations whose fixed samples are kept, spread over the run
MAX_RANDOM = 24

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#main">Skip to the panels</a>
<header><h1>$title</h1>$legend</header>
<main id="main">$body</main>
<footer>Made by lit-rlhf. $versions</footer>
<script>$plotly</script>
<script type="application/json" id="figures">$figures</script>
<script type="application/json" id="samples-data">$samples</script>
<script>$script</script>
</body>
</html>
""")


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
        ValueError: If a directory has no ``metrics.csv``.
    """
    paths = [Path(run_dir) for run_dir in run_dirs]
    runs = [load_run(path, name=name) for path, name in zip(paths, name_runs(paths), strict=True)]
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(render(runs, title=title or ", ".join(run.name for run in runs)), encoding="utf-8")
    return target


def render(runs: Sequence[RunData], *, title: str) -> str:
    """The whole page.

    Args:
        runs: At least one.
        title: Heading.

    Returns:
        HTML.
    """
    figures: list[go.Figure] = []
    body = "".join(
        [
            _summary(runs),
            _figures("The four monitors", _lines(runs, panels.FOUR), figures, note=_NOTE, wide=True),
            _figures("Held out", _lines(runs, panels.held_out_panels(runs)), figures),
            _figures("Score and KL", [panels.frontier_figure(runs)], figures, wide=True),
            _figures(
                "Score distribution",
                [panels.distribution_figure(run, k) for k, run in enumerate(runs)],
                figures,
                wide=True,
            ),
            _events(runs),
            _figures("Critic, losses, updates", _lines(runs, panels.INSIDE), figures),
            _samples_section(runs),
            _config(runs),
        ]
    )
    return _PAGE.substitute(
        title=html.escape(title),
        style=STYLE,
        legend=_legend(runs),
        body=body,
        versions=html.escape(_installed()),
        plotly=get_plotlyjs(),
        figures=_embedded([json.loads(figure.to_json()) for figure in figures]),
        samples=_embedded([_run_samples(run, k) for k, run in enumerate(runs)]),
        script=SCRIPT,
    )


_NOTE = (
    f"Line: median of {panels.WINDOW} iterations; band: their range. A dotted line with a flag ⚑ is where the collapse "
    "detector spoke."
)


def _lines(runs: Sequence[RunData], which: Iterable[panels.Panel]) -> list[go.Figure | None]:
    return [panels.series_figure(runs, panel) for panel in which]


def _figures(
    heading: str, made: Sequence[go.Figure | None], figures: list[go.Figure], *, note: str = "", wide: bool = False
) -> str:
    """A section of figures; registers them in ``figures``, whose place in the list is the element's number."""
    kept = [figure for figure in made if figure is not None]
    if not kept:
        return ""
    boxes = []
    for figure in kept:
        label = html.escape(f"Chart: {figure.layout.title.text}", quote=True)
        boxes.append(f'<div class="plot" role="img" aria-label="{label}" data-figure="{len(figures)}"></div>')
        figures.append(figure)
    said = f"<p class='note'>{html.escape(note)}</p>" if note else ""
    return (
        f"<section><h2>{heading}</h2>{said}<div class='grid{' wide' if wide else ''}'>{''.join(boxes)}</div></section>"
    )


def _legend(runs: Sequence[RunData]) -> str:
    items = []
    for k, run in enumerate(runs):
        dash = {"solid": "0", "dash": "8 5", "dot": "2 4", "dashdot": "8 4 2 4"}.get(
            panels.DASHES[k % len(panels.DASHES)], "14 5"
        )
        line = (
            f'<svg width="34" height="10" aria-hidden="true"><line x1="0" y1="5" x2="34" y2="5" '
            f'stroke="{panels.color_of(k)}" stroke-width="3" stroke-dasharray="{dash}"/></svg>'
        )
        items.append(f"<li>{line} {html.escape(run.name)}</li>")
    return f'<ul class="legend" aria-label="Runs">{"".join(items)}</ul>'


def _summary(runs: Sequence[RunData]) -> str:
    heads = ["run", "iterations", "score", "length", "KL", "perplexity", "collapse flagged"]
    rows = []
    for run in runs:
        ends = [_ends(run.first(*names)) for _, _, names in panels.FOUR]
        iterations = max((points[-1][0] + 1 for points in run.series.values() if points), default=0)
        flagged = ", ".join(f"iteration {event['at']}" for event in run.events) or "never"
        cells = [html.escape(run.name), str(iterations), *ends, flagged]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    broken = sum(run.broken_lines for run in runs)
    said = f"<p class='note'>{broken} broken lines were left out.</p>" if broken else ""
    head = "".join(f"<th scope='col'>{name}</th>" for name in heads)
    return (
        f"<section><h2>Summary</h2>{said}<div class='scroll' tabindex='0' role='region' aria-label='Summary table'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _ends(points: list[tuple[int, float]]) -> str:
    return f"{points[0][1]:.3g} → {points[-1][1]:.3g}" if points else "not logged"


def _events(runs: Sequence[RunData]) -> str:
    items = []
    for run in runs:
        for event in run.events:
            readings = event.get("readings", {})
            words = [
                f"{name} {readings[name]['value']:.3g} (was {readings[name]['baseline']:.3g})"
                if name in readings
                else name
                for name in event["fired"]
            ]
            text = f"{', '.join(words)}; holding since iteration {event['since']}. {event.get('did', '')}"
            items.append(f"<li><b>{html.escape(run.name)}, iteration {event['at']}</b>: {html.escape(text)}</li>")
    return f"<section><h2>Collapse detector</h2><ul class='events'>{''.join(items)}</ul></section>" if items else ""


def _samples_section(runs: Sequence[RunData]) -> str:
    if not any(run.samples for run in runs):
        return ""
    return """<section id="samples"><h2>Samples side by side</h2>
<div class="controls"><label>Prompt <select id="side-prompt"></select></label>
<label>Iteration <input type="range" id="side-at" min="0" value="0"><output id="side-at-text"></output></label></div>
<div id="side-question" class="question"></div><div id="side" class="cards" aria-live="polite"></div></section>
<section id="tokens"><h2>Token view</h2>
<p class="note">Each token of a response, tinted by one column. Hover, tap or focus a token for its numbers;
the arrow keys move between tokens.</p>
<div class="controls"><label>Run <select id="token-run"></select></label>
<label>Response <select id="token-sample"></select></label>
<label>Tint by <select id="token-column"></select></label></div>
<div id="token-question" class="question"></div>
<div id="token-scale" class="scale" aria-hidden="true"></div>
<div id="token-text" class="tokens" role="group" aria-label="Tokens of the response"></div>
<div id="token-detail" class="detail" role="status"></div></section>"""


def _config(runs: Sequence[RunData]) -> str:
    parts = []
    for run in runs:
        versions = ", ".join(f"{name} {number}" for name, number in run.versions.items())
        said = f"<p>{html.escape(versions)}</p>" if versions else ""
        text = html.escape(run.config) or "(no config.yaml in the run directory)"
        parts.append(
            f"<details><summary>{html.escape(run.name)}</summary>{said}<pre tabindex='0'>{text}</pre></details>"
        )
    return f"<section><h2>Config and versions</h2>{''.join(parts)}</section>"


def _installed() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return "Report made with " + ", ".join(found) + "."


def _run_samples(run: RunData, k: int) -> dict[str, Any]:
    fixed = [sample for sample in run.samples if sample["kind"] == "fixed"]
    steps = sorted({sample["step"] for sample in fixed})
    if len(steps) > MAX_FIXED_STEPS:
        picks = {round(i * (len(steps) - 1) / (MAX_FIXED_STEPS - 1)) for i in range(MAX_FIXED_STEPS)}
        steps = [steps[i] for i in sorted(picks)]
    kept = [sample for sample in fixed if sample["step"] in set(steps)]
    kept += [sample for sample in run.samples if sample["kind"] != "fixed"][-MAX_RANDOM:]
    return {"name": run.name, "color": panels.color_of(k), "samples": kept}


def _embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever a model wrote."""
    return json.dumps(value, ensure_ascii=False).replace("</", "<\\/").replace("<!--", "<\\!--")
