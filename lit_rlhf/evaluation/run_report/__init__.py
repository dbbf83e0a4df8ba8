"""One self-contained HTML page from run directories: ``lit-rlhf report RUN_DIR [RUN_DIR ...] --out report.html``.

The page loads nothing from anywhere: plotly.js is inside it, and its content security policy forbids the network.
Nothing here imports torch, so the command answers quickly.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.evaluation.run_report.load import RunData, load_run, name_runs
from lit_rlhf.evaluation.run_report.page import render

__all__ = ["RunData", "load_run", "main", "write_report"]


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


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Raises:
        ValueError: If a directory is not a run.
    """
    parser = argparse.ArgumentParser(prog="lit-rlhf report", description="One HTML page from run directories.")
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help="run directory; several are overlaid")
    parser.add_argument("--out", default="report.html", help="the HTML file (default: %(default)s)")
    parser.add_argument("--title", default="", help="heading (default: the runs' names)")
    args = parser.parse_args(argv)
    sys.stdout.write(f"{write_report(args.run_dirs, args.out, title=args.title)}\n")
