from __future__ import annotations

import dataclasses
import json
import random
import re

import pytest

from lit_rlhf.reports import reward_figures as charts
from lit_rlhf.reports.reward_page import render_page, write_reward_report
from lit_rlhf.reward_report import RewardReport, ScoredPair
from tests.reports.browser import HOSTILE, look, needs_browser, visit


def make_pairs(count: int, *, seed: int = 0) -> list[ScoredPair]:
    rng = random.Random(seed)
    return [
        ScoredPair(
            prompt=f"Question {i // 2}?",
            chosen=f"Right answer number {i}.",
            rejected=f"Wrong answer number {i}.",
            chosen_score=rng.gauss(1, 1),
            rejected_score=rng.gauss(0, 1),
            chosen_length=rng.randrange(1, 60),
            rejected_length=rng.randrange(1, 60),
            subset=rng.choice(["helpful", "harmless"]),
        )
        for i in range(count)
    ]


def hostile_pair() -> ScoredPair:
    return ScoredPair(
        prompt=HOSTILE,
        chosen=HOSTILE + "x" * 5000,
        rejected="line\r\nline",
        chosen_score=-50.0,
        rejected_score=50.0,
        chosen_length=9,
        rejected_length=1,
        subset="<a href='javascript:alert(1)'>click</a>" + HOSTILE,
    )


def by_characters(requests):
    return [len(response) / 10 for _, response in requests]


@pytest.fixture(scope="module")
def report() -> RewardReport:
    return RewardReport.from_scores(
        [*make_pairs(300), hostile_pair()], score_fn=by_characters, model="<b>model</b>", data="test", max_probed=20
    )


def test_worst_pairs_come_first_and_least_of_all_the_very_worst(report):
    assert len(report.worst) == 10
    assert report.worst[0].prompt == HOSTILE
    assert [p.difference for p in report.worst] == sorted(p.difference for p in report.worst)


def test_same_input_same_report_whatever_the_order_of_ranks():
    pairs = make_pairs(40)
    rank_0_then_1, interleaved = pairs[::2] + pairs[1::2], pairs
    one, two = (RewardReport.from_scores(p, score_fn=by_characters) for p in (interleaved, rank_0_then_1))
    assert one == two
    assert render_page(one) == render_page(two)


def test_json_round_trip_has_every_number_and_no_nan(report, tmp_path):
    json_path, html_path = write_reward_report(report, tmp_path / "new" / "folder")
    read = json.loads(json_path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert read["accuracy"]["rate"] == report.accuracy.rate._asdict()
    assert read["pairs"] == 301
    assert read["clusters"] == 151
    assert len(read["probes"]) == 4
    assert set(read["by_subset"]) == {"helpful", "harmless", hostile_pair().subset}
    assert read["worst"][0]["chosen"] == hostile_pair().chosen
    assert "prompt_source" not in read["worst"][0]
    assert html_path.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_one_pair_makes_a_report_with_null_where_nothing_can_be_said(tmp_path):
    report = RewardReport.from_scores(make_pairs(1), score_fn=by_characters)
    read = json.loads(report.to_json())
    assert read["length_bias"]["accuracy_minus_longer"]["low"] is None
    assert "n/a" in render_page(report)
    assert all(isinstance(value, float) for value in report.summary().values())


def test_summary_has_the_headlines(report):
    summary = report.summary()
    assert summary["accuracy"] == report.accuracy.rate.mean
    assert summary["accuracy_low"] < summary["accuracy"] < summary["accuracy_high"]
    assert {"longer_wins", "ece", "log_loss", "accuracy_helpful", "accuracy_harmless"} <= set(summary)


def test_the_verdict_names_the_length_rule_that_beats_the_model():
    """A coin on data whose chosen responses are short: it beats "longer wins" and loses to "shorter wins"."""
    rng = random.Random(0)
    pairs = [
        dataclasses.replace(
            pair, prompt=str(i), chosen_score=rng.gauss(0, 1), rejected_score=0.0, chosen_length=1, rejected_length=9
        )
        for i, pair in enumerate(make_pairs(200))
    ]
    page = render_page(RewardReport.from_scores(pairs))
    assert (
        "The model is not distinguishable from a coin, better than the rule “the longer response wins”, "
        "and worse than the rule “the shorter response wins”."
    ) in page


def test_without_a_scoring_function_there_are_no_probes():
    report = RewardReport.from_scores(make_pairs(4))
    assert report.probes == ()
    assert "Degenerate responses" not in render_page(report)


def test_the_page_loads_nothing_and_holds_no_raw_markup_from_the_data(report):
    page = render_page(report)
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # without the page's own scripts
    assert "default-src 'none'" in own
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?(?:https?:)?//", own)
    assert "<img" not in own
    assert "<b>model" not in own
    assert not re.search(r"<[^>]*javascript:", own)
    assert not re.search("[\ud800-\udfff\x00\x1b\u202e]", own)
    assert page.encode("utf-8")


def test_labels_of_charts_are_text(report):
    rows = [("<i>a</i>", report.accuracy.rate), ("b" * 50, report.accuracy.rate)]
    figure = charts.interval_chart(rows, x="x", limits=None)
    assert figure.layout.yaxis.ticktext == ("&lt;i&gt;a&lt;/i&gt;", "b" * 19 + "…")


@needs_browser
def test_page_in_a_real_browser(report, tmp_path):
    _, page = write_reward_report(report, tmp_path)
    done = visit(page, tmp_path, "--dump-dom")
    assert "<title>Reward model report: &lt;b&gt;model" in done.stdout
    assert 'data-ready="yes"' in done.stdout
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr
    chart_texts = re.findall(r"<text[^>]*>([^<]*)</text>", done.stdout)
    assert any(text.startswith("&lt;a href=") for text in chart_texts)


@needs_browser
@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_draws_and_fits(report, tmp_path, width):
    seen = look(write_reward_report(report, tmp_path)[1], tmp_path, width=width)
    assert seen["plots"] == seen["drawn"] == 7
    assert seen["overflowing"] == 0
    assert seen["wide"] <= seen["inner"] == width
    assert (seen["resources"], seen["images"], seen["slips"]) == (0, 0, "")
    assert seen["title"] == "Reward model report: <b>model</b>"
