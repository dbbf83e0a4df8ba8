"""The report as one HTML file that loads nothing: text, tables and charts, readable from a phone's width up.

Real preference data is hostile: markup, scripts, control characters, text that reverses its direction, a word of ten
thousand letters. All of it passes :func:`shown_text`; a content security policy forbids the page every connection.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.evaluation.reward_report.accuracy import Accuracy
from lit_rlhf.evaluation.reward_report.length_bias import LengthBias
from lit_rlhf.evaluation.reward_report.pairs import ScoredPair
from lit_rlhf.evaluation.reward_report.report import RewardReport
from lit_rlhf.reports import reward_figures as charts

_MAX_CHARACTERS = 3000
_UNSHOWABLE = re.compile("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; } html { overflow-y: scroll; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: #222; background: #fff;
       font: 16px/1.5 system-ui, -apple-system, 'Segoe UI', sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
p { margin: .4rem 0; max-width: 46rem; } .note { color: #555; font-size: .92rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.6rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.card { border: 1px solid #ddd; border-radius: .5rem; padding: .6rem .8rem; }
.card b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.card span { display: block; color: #555; font-size: .85rem; }
.two { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
.two > div { min-width: 0; } h3 { font-size: 1rem; margin: .8rem 0 .2rem; }
.scroll { overflow-x: auto; margin-top: .6rem; } td small { display: block; white-space: nowrap; color: #555; }
table { border-collapse: collapse; font-size: .92rem; overflow-wrap: normal; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid #e6e6e6; vertical-align: top;
         font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; min-width: 7rem; max-width: 18rem; }
.pair { border: 1px solid #ddd; border-radius: .5rem; padding: .8rem; margin: .8rem 0; }
.text { white-space: pre-wrap; unicode-bidi: isolate; background: #f6f6f6; border-radius: .3rem; padding: .5rem;
        margin: .2rem 0 .6rem; max-height: 18rem; overflow-y: auto; font-size: .92rem; }
.chosen { border-left: 4px solid #0072B2; } .rejected { border-left: 4px solid #D55E00; }
.label { font-size: .85rem; color: #555; }
"""


def write_reward_report(report: RewardReport, folder: str | Path) -> tuple[Path, Path]:
    """Writes ``reward_report.json`` and ``reward_report.html`` and returns their paths.

    The page holds everything it needs, the chart library included, and loads nothing from anywhere.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    json_path, html_path = folder / "reward_report.json", folder / "reward_report.html"
    json_path.write_text(report.to_json() + "\n", encoding="utf-8")
    html_path.write_text(render_page(report), encoding="utf-8")
    return json_path, html_path


def render_page(report: RewardReport) -> str:
    """The whole page; equal reports give equal text."""
    title = f"Reward model report{': ' + report.model if report.model else ''}"
    body = "\n".join(
        [_head(report), _accuracy(report), _differences(report), _calibration(report), _length(report)]
        + ([_probes(report)] if report.probes else [])
        + [_worst(report.worst)]
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{shown_text(title)}</title>
<style>{_STYLE}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
{body}
</body>
</html>
"""


def shown_text(text: str, limit: int = _MAX_CHARACTERS) -> str:
    """Any text made safe to show: escaped, controls as U+FFFD, long text cut with the number of characters cut.

    Unpaired surrogates, which JSON can smuggle in and UTF-8 cannot hold, become U+FFFD as well.
    """
    cut = len(text) - limit
    kept = _UNSHOWABLE.sub("\ufffd", text[:limit].replace("\r\n", "\n"))
    more = f" … [{cut} more characters]" if cut > 0 else ""
    return html.escape(kept) + more


def _head(report: RewardReport) -> str:
    accuracy, bias = report.accuracy.rate, report.length_bias
    advantage, data = bias.accuracy_minus_longer, report.data
    cards = [
        ("accuracy", _number(accuracy.mean), _ends(accuracy)),
        ("“longer wins”", _number(bias.longer_wins.rate.mean), _ends(bias.longer_wins.rate)),
        ("model \N{MINUS SIGN} “longer wins”", _number(advantage.mean, signed=True), _ends(advantage)),
        ("ECE", _number(report.calibration.ece), f"{_number(report.calibration.ece_by_chance)} by chance alone"),
        ("log loss", _number(report.calibration.log_loss), "a coin: 0.693"),
        ("prefers the longer", _number(bias.model_prefers_longer.rate.mean), _ends(bias.model_prefers_longer.rate)),
    ]
    shown = "".join(f'<div class="card"><span>{n}</span><b>{v}</b><span>{d}</span></div>' for n, v, d in cards)
    clustered = "" if report.clusters == report.pairs else ", clustered by dialogue"
    return f"""<h1>Reward model report</h1>
<p class="note">{shown_text(report.model) or "unnamed model"}{" on " + shown_text(data) if data else ""}: {report.pairs}
pairs of {report.clusters} dialogues. Intervals hold {report.confidence:.0%}{clustered}.</p>
<div class="cards">{shown}</div>
<p>{_verdict(accuracy, bias)}</p>"""


def _verdict(accuracy: Interval, bias: LengthBias) -> str:
    chance = _against(accuracy, 0.5, "a coin")
    longer = _against(bias.accuracy_minus_longer, 0.0, "the rule “the longer reply wins”")
    shorter = _against(bias.accuracy_minus_shorter, 0.0, "the rule “the shorter reply wins”")
    return f"The model is {chance}, {longer}, and {shorter}."


def _against(interval: Interval, bar: float, name: str) -> str:
    if not interval.is_defined:
        return f"not comparable with {name} (too few dialogues)"
    if interval.low > bar:
        return f"better than {name}"
    return f"worse than {name}" if interval.high < bar else f"not distinguishable from {name}"


def _accuracy(report: RewardReport) -> str:
    subsets = list(report.by_subset.items()) if len(report.by_subset) > 1 else []
    lengths = [(charts.bucket_label(bucket), bucket.accuracy) for bucket in report.by_length]
    return _section(
        "Accuracy",
        "Share of pairs in which the chosen reply has the higher score; a tie counts half "
        f"({report.accuracy.ties} ties). Dashed: chance.",
        '<div class="two">',
        _accuracy_part("By subset", "subset", [("all pairs", report.accuracy), *subsets], "subsets"),
        _accuracy_part("By length: the chosen reply is …", "tokens", lengths, "lengths"),
        "</div>",
    )


def _accuracy_part(title: str, column: str, rows: Sequence[tuple[str, Accuracy]], name: str) -> str:
    figure = charts.interval_chart(
        [(label, accuracy.rate) for label, accuracy in rows], x="accuracy", baseline=0.5, limits=(0, 1)
    )
    table = _table((column, "pairs", "accuracy"), [(label, str(a.pairs), a.rate) for label, a in rows])
    return f"<div><h3>{title}</h3>{charts.figure_html(figure, name)}{table}</div>"


def _differences(report: RewardReport) -> str:
    shape = report.differences
    return _section(
        "Score differences",
        f"r(chosen) \N{MINUS SIGN} r(rejected): mean {_number(shape.mean, signed=True)}, "
        f"standard deviation {_number(shape.std)}. The outermost bars also hold what lies beyond them.",
        charts.figure_html(charts.difference_chart(shape), "differences"),
    )


def _calibration(report: RewardReport) -> str:
    result = report.calibration
    rows = [(f"{b.low:.2f} to {b.high:.2f}", str(b.pairs), _number(b.confidence), b.accuracy) for b in result.bins]
    return _section(
        "Calibration",
        "Each pair is presented in both orders, so the curve is symmetric and its upper half holds all of it: how "
        "often the model's favorite is the annotator's, against sigmoid(|score difference|). Below the dashed "
        f"diagonal: overconfident. ECE {_number(result.ece)} (a perfectly calibrated model would show "
        f"{_number(result.ece_by_chance)} on this many pairs), log loss {_number(result.log_loss)} (a coin: 0.693), "
        f"Brier score {_number(result.brier)} (a coin: 0.250), mean confidence {_number(result.mean_confidence)}.",
        '<div class="two"><div>',
        charts.figure_html(charts.reliability_chart(result), "reliability"),
        "</div><div>",
        _table(("confidence", "pairs", "mean", "accuracy"), rows),
        "</div></div>",
    )


def _length(report: RewardReport) -> str:
    bias = report.length_bias
    rules = [
        ("model is right", report.accuracy.rate),
        ("longer is right", bias.longer_wins.rate),
        ("model takes longer", bias.model_prefers_longer.rate),
    ]
    correlations = [
        ("all replies", _number(bias.pearson, signed=True), _number(bias.spearman, signed=True)),
        ("within pairs", _number(bias.pearson_within, signed=True), _number(bias.spearman_within, signed=True)),
    ]
    return _section(
        "Length bias",
        "If the model takes the longer reply more often than the annotators do, PPO will find out.",
        '<div class="two"><div><h3>Three rates</h3>',
        charts.figure_html(charts.comparison_chart(rules), "rules"),
        _table(("correlation of score and length", "Pearson", "Spearman"), correlations),
        "</div><div><h3>Mean score by length</h3>",
        charts.figure_html(charts.length_chart(bias), "length"),
        "</div></div>",
    )


def _probes(report: RewardReport) -> str:
    rows = [(p.name, str(p.replies), _number(p.change.mean, signed=True), p.fooled) for p in report.probes]
    notes = "; ".join(f"{p.name}: {p.description}" for p in report.probes)
    figure = charts.interval_chart(
        [(p.name, p.fooled) for p in report.probes], x="share scored at least as high", limits=(0, 1)
    )
    return _section(
        "Degenerate replies",
        f"Replies that should score clearly below the chosen one ({notes}). "
        "Fooled: how often one scores at least as high.",
        charts.figure_html(figure, "probes"),
        _table(("reply", "number", "change of score", "fooled"), rows),
    )


def _worst(pairs: Sequence[ScoredPair]) -> str:
    shown = [_pair(place, pair) for place, pair in enumerate(pairs, start=1)]
    return _section("Worst pairs", "The pairs that the model orders most wrongly, or least rightly.", *shown)


def _pair(place: int, pair: ScoredPair) -> str:
    chosen = f"chosen: score {_number(pair.chosen_score, signed=True)}, {pair.chosen_length} tokens"
    rejected = f"rejected: score {_number(pair.rejected_score, signed=True)}, {pair.rejected_length} tokens"
    return f"""<div class="pair"><b>{place}. difference {_number(pair.difference, signed=True)}</b>
<span class="label">({shown_text(pair.subset, 80)})</span>
<div class="label">prompt</div><div class="text" dir="auto">{shown_text(pair.prompt)}</div>
<div class="label">{chosen}</div><div class="text chosen" dir="auto">{shown_text(pair.chosen)}</div>
<div class="label">{rejected}</div><div class="text rejected" dir="auto">{shown_text(pair.rejected)}</div></div>"""


def _section(title: str, note: str, *parts: str) -> str:
    return f'<section><h2>{title}</h2><p class="note">{note}</p>' + "\n".join(parts) + "</section>"


def _table(head: Iterable[str], rows: Iterable[Iterable[str | Interval]]) -> str:
    top = "".join(f"<th>{shown_text(cell)}</th>" for cell in head)
    lines = ("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(content: str | Interval) -> str:
    if isinstance(content, Interval):
        return f"{_number(content.mean)}<small>{_ends(content)}</small>"
    return shown_text(content, 120)


def _number(value: float, *, signed: bool = False) -> str:
    if value != value:
        return "n/a"
    return (f"{value:+.3f}" if signed else f"{value:.3f}").replace("-", "\N{MINUS SIGN}")


def _ends(interval: Interval) -> str:
    if not interval.is_defined:
        return "n/a"
    return f"{_number(interval.low)} to {_number(interval.high)}"
