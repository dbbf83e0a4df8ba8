"""One self-contained HTML page from run directories: ``lit-rlhf report RUN_DIR [RUN_DIR ...] --out report.html``.

The page loads nothing from anywhere: plotly.js is inside it, and its content security policy forbids the network.
Nothing here imports torch, so the command answers quickly.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_rlhf.commands.arguments import CommandParser
from lit_rlhf.reports.run_page import write_report


def main(argv: Sequence[str]) -> None:
    """The command line.

    Raises:
        ValueError: As :func:`lit_rlhf.reports.run_page.write_report`.
    """
    parser = CommandParser("report", "One HTML page from run directories.")
    parser.add_argument("run_dirs", metavar="RUN_DIR", nargs="+", help="run directory; several are overlaid")
    parser.add_argument("--out", default="report.html", help="the HTML file (default: %(default)s)")
    parser.add_argument("--title", default="", help="heading (default: the runs' names)")
    args = parser.parse_args(argv)
    sys.stdout.write(f"{write_report(args.run_dirs, args.out, title=args.title)}\n")
