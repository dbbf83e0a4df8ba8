"""The reward-model report as one HTML page and one JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.files import write_text
from lit_rlhf.reports import page
from lit_rlhf.reports import reward_figures as drawn
from lit_rlhf.reports.figures import Chart
from lit_rlhf.reports.page import number
from lit_rlhf.reward_report.accuracy import Accuracy
from lit_rlhf.reward_report.length_bias import LengthBias
from lit_rlhf.reward_report.report import RewardReport


def write_reward_report(report: RewardReport, folder: str | Path) -> tuple[Path, Path]:
    """Writes ``reward_report.json`` and ``reward_report.html`` and returns their paths.

    The page holds everything it needs, the chart library included, and loads nothing from anywhere.
    """
    json_path, html_path = Path(folder) / "reward_report.json", Path(folder) / "reward_report.html"
    write_text(json_path, report.to_json() + "\n")
    write_text(html_path, render_page(report))
    return json_path, html_path


def render_page(report: RewardReport) -> str:
    """The whole page; equal reports give equal text."""
    bias = report.length_bias
    return page.render(
        "reward",
        title=f"Reward model report: {report.model or 'unnamed model'}",
        report=report,
        bias=bias,
        calibration=report.calibration,
        verdict=_verdict(report.accuracy.rate, bias),
        charts=_charts(report),
        subsets=[(label, part.pairs, part.rate) for label, part in _subsets(report)],
        lengths=[(label, part.pairs, part.rate) for label, part in _lengths(report)],
        reliability=[
            (f"{b.low:.2f} to {b.high:.2f}", b.pairs, number(b.confidence), b.accuracy) for b in report.calibration.bins
        ],
        correlations=[
            ("all responses", number(bias.pearson, signed=True), number(bias.spearman, signed=True)),
            ("within pairs", number(bias.pearson_within, signed=True), number(bias.spearman_within, signed=True)),
        ],
        probes=[(p.name, p.responses, number(p.change.mean, signed=True), p.fooled) for p in report.probes],
    )


def _charts(report: RewardReport) -> dict[str, Chart]:
    bias = report.length_bias
    rules = [
        ("model is right", report.accuracy.rate),
        ("longer is right", bias.longer_wins.rate),
        ("model takes longer", bias.model_prefers_longer.rate),
    ]
    fooled = [(p.name, p.fooled) for p in report.probes]
    return {
        "subsets": Chart("By subset", _accuracy(_subsets(report))),
        "lengths": Chart("By length: the chosen response is …", _accuracy(_lengths(report))),
        "differences": Chart("Pairs by difference", drawn.difference_chart(report.differences)),
        "reliability": Chart("Accuracy by confidence", drawn.reliability_chart(report.calibration)),
        "rules": Chart("Three rates", drawn.comparison_chart(rules)),
        "length": Chart("Mean score by length", drawn.length_chart(bias)),
        "probes": Chart(
            "How often each is as good as the chosen response",
            drawn.interval_chart(fooled, x="share scored at least as high", limits=(0, 1)),
        ),
    }


def _accuracy(rows: Sequence[tuple[str, Accuracy]]) -> object:
    return drawn.interval_chart([(label, a.rate) for label, a in rows], x="accuracy", baseline=0.5, limits=(0, 1))


def _subsets(report: RewardReport) -> list[tuple[str, Accuracy]]:
    return [("all pairs", report.accuracy), *(report.by_subset.items() if len(report.by_subset) > 1 else ())]


def _lengths(report: RewardReport) -> list[tuple[str, Accuracy]]:
    return [(drawn.bucket_label(bucket), bucket.accuracy) for bucket in report.by_length]


def _verdict(accuracy: Interval, bias: LengthBias) -> str:
    chance = _against(accuracy, 0.5, "a coin")
    longer = _against(bias.accuracy_minus_longer, 0.0, "the rule “the longer response wins”")
    shorter = _against(bias.accuracy_minus_shorter, 0.0, "the rule “the shorter response wins”")
    return f"The model is {chance}, {longer}, and {shorter}."


def _against(interval: Interval, bar: float, name: str) -> str:
    if not interval.is_defined:
        return f"not comparable with {name} (too few dialogues)"
    if interval.low > bar:
        return f"better than {name}"
    return f"worse than {name}" if interval.high < bar else f"not distinguishable from {name}"
