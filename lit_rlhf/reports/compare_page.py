"""Comparisons, tax and sheets as HTML pages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from lit_rlhf.evaluation.answers import Pair
from lit_rlhf.evaluation.comparison import Comparison
from lit_rlhf.evaluation.judges.base import OUTCOMES, Verdict
from lit_rlhf.evaluation.judges.sheet import SheetRow
from lit_rlhf.evaluation.tax import Tax
from lit_rlhf.evaluation.verdicts import Judged
from lit_rlhf.files import write_text
from lit_rlhf.reports import compare_figures as drawn
from lit_rlhf.reports import page
from lit_rlhf.reports.figures import Chart

MOST_PAIRS = 60
"""Pairs shown of each outcome of each two policies; the file of verdicts has all."""


def write_comparison(result: Comparison, judged: Sequence[Judged], path: str | Path) -> Path:
    """Write the page: bars, win rate by length, tables, and pairs with the judge's reasons."""
    write_text(path, comparison_page(result, judged))
    return Path(path)


def comparison_page(result: Comparison, judged: Sequence[Judged]) -> str:
    """The whole page; equal results give equal text."""
    table = result.table
    rates = [
        (policy.name if group == "all" else f"{policy.name}: {group}", rate)
        for policy in table.policies
        for group, rate in policy.win_rates.items()
    ]
    header, rows = table.cells()
    against = [each for each in judged if each.b == table.baseline and each.rows()]
    return page.render(
        "compare",
        title=f"Against {table.baseline}, judged by {table.judge}",
        result=result,
        caption=table.caption(),
        header=header,
        rows=rows,
        charts=[
            Chart("Win, tie and lose", drawn.shares_chart(rates)),
            Chart("Win rate by length", drawn.length_chart(against)),
        ],
        sections=result.sections(),
        outcomes=OUTCOMES,
        most=MOST_PAIRS,
        duels=[(each, _chosen(each)) for each in judged],
    )


def _chosen(judged: Judged) -> list[tuple[Pair, Verdict]]:
    """The first pairs of each outcome, lost ones first."""
    rows = judged.rows()
    kept = []
    for outcome in reversed(OUTCOMES):
        kept += [(pair, verdict) for pair, verdict in rows if verdict.outcome == outcome][:MOST_PAIRS]
    return kept


def write_tax(tax: Tax, path: str | Path) -> Path:
    """Write the page of a tax: a chart for every text and task, and the table."""
    header, rows = tax.cells()
    charts = [Chart(m.name, drawn.tax_chart(m, tax.models)) for m in tax.measurements]
    text = page.render(
        "tax", title="Alignment tax", tax=tax, caption=tax.caption(), header=header, rows=rows, charts=charts
    )
    write_text(path, text)
    return Path(path)


def write_sheet_page(rows: Sequence[SheetRow], path: str | Path) -> Path:
    """Write the page on which annotators judge; it works offline and keeps its progress in the browser.

    Raises:
        FileExistsError: There is such a file.
    """
    names = "\0".join(row.pair for row in rows)
    content: Mapping[str, object] = {
        "id": hashlib.sha256(names.encode()).hexdigest()[:12],
        "rows": [{"pair": r.pair, "prompt": r.prompt, "left": r.left, "right": r.right} for r in rows],
    }
    text = page.render("sheet", script="sheet.js", title="Which answer is better?", sheet=content, number=len(rows))
    write_text(path, text, new=True)
    return Path(path)
