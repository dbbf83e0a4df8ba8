"""Differences within seed, their intervals, and what they say of a claim."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from scipy import stats

from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.studies.findings import frontier_fit, frontier_points, judged, t_interval, verdict_of
from lit_rlhf.studies.plan import At, Claim
from lit_rlhf.studies.results import Results, summary

CURVE = {30: 3.0, 10: 1.0, 20: 5.0, 40: 2.0}


@pytest.mark.parametrize(
    ("at", "value"),
    [("end", 2.0), ("peak", 5.0), ("fall", 3.0), ("mean", 2.75), ("early", 1.0), ("roughness", (4 + 2 + 1) / 3)],
)
def test_summaries_read_a_curve_in_the_order_of_time(at: At, value: float) -> None:
    assert summary(CURVE, at) == pytest.approx(value)


def test_the_end_of_a_long_curve_is_the_mean_of_its_last_tenth() -> None:
    curve = {i: float(i) for i in range(1, 51)}
    assert summary(curve, "end") == pytest.approx((46 + 47 + 48 + 49 + 50) / 5)
    assert summary(curve, "early") == pytest.approx(sum(range(1, 13)) / 12)
    with pytest.raises(ValueError, match="without a point"):
        summary({}, "end")


@pytest.mark.parametrize("number", [2, 3, 5, 10, 31])
def test_the_interval_is_students(number: int) -> None:
    chance = random.Random(number)
    values = [chance.gauss(1, 2) for _ in range(number)]
    low, mean, high = t_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-3)
    assert mean == pytest.approx(sum(values) / number)


def test_one_value_has_no_interval_and_none_has_nothing() -> None:
    assert math.isnan(t_interval([2.0]).low)
    assert t_interval([2.0]).mean == 2.0
    assert math.isnan(t_interval([]).mean)


def claim(**changes: Any) -> Claim:
    return Claim(**{"says": "x", "arm": "a", "against": "b", "margin": 2.0, **changes})


@pytest.mark.parametrize(
    ("low", "high", "expected", "verdict"),
    [
        (0.5, 3, "higher", "same"),
        (-1, 3, "higher", "cannot be told"),
        (-3, 1.9, "higher", "different"),
        (-3, -0.5, "lower", "same"),
        (-3, 1, "lower", "cannot be told"),
        (-1.9, 3, "lower", "different"),
        (-1.9, 1.9, "none", "same"),
        (0.1, 1.9, "none", "same"),  # a difference that is known, and known to be small
        (-1, 3, "none", "cannot be told"),
        (0.1, 3, "none", "cannot be told"),  # its mean, 1.55, is within the margin
        (1, 5, "none", "different"),
        (-5, -1, "none", "different"),
    ],
)
def test_verdicts(low: float, high: float, expected: Any, verdict: str) -> None:
    assert verdict_of(Interval(low, (low + high) / 2, high), claim(expected=expected)) == verdict


def results(a: dict[int, float], b: dict[int, float]) -> Results:
    return {
        "a": {seed: {"win": {10: value}} for seed, value in a.items()},
        "b": {seed: {"win": {10: value}} for seed, value in b.items()},
    }


def test_arms_are_compared_within_seed() -> None:
    """Seeds differ by far more than arms: between seeds nothing could be told."""
    found = judged("F", claim(), results({1: 12, 2: 53, 3: 91}, {1: 10, 2: 50, 3: 90, 4: 0}))
    assert found.differences == {1: 2, 2: 3, 3: 1}
    assert found.interval.mean == 2
    assert found.interval.low == pytest.approx(2 - 4.303 / math.sqrt(3), abs=1e-3)
    assert found.verdict == "cannot be told"
    lower = judged("F", claim(expected="lower", margin=0), results({1: 12, 2: 13, 3: 11.9}, {1: 10, 2: 11, 3: 10}))
    assert lower.verdict == "different"


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_nothing_is_concluded_from_fewer_than_three_seeds(seeds: int) -> None:
    found = judged("F", claim(), results({s: 9.0 + s / 100 for s in range(seeds)}, dict.fromkeys(range(seeds), 1.0)))
    assert found.verdict == "cannot be told"
    assert len(found.differences) == seeds


def test_a_run_without_the_measure_is_no_difference() -> None:
    found: Results = {"a": {1: {"win": {1: 1.0}}}, "b": {1: {"val/kl": {1: 1.0}}}}
    assert judged("F", claim(), found).differences == {}


def test_the_fit_finds_the_law_it_was_drawn_from() -> None:
    points = [(d / 10, 0.3 + d / 10 * (1.5 - 0.7 * math.log(d / 10))) for d in range(1, 30)]
    fit = frontier_fit([(0.0, 99.0), *points])  # a distance of 0 has no logarithm
    assert fit is not None
    assert (fit.start, fit.alpha, fit.beta) == pytest.approx((0.3, 1.5, 0.7), abs=1e-6)
    assert fit.at(2.0) == pytest.approx(0.3 + 2 * (1.5 - 0.7 * math.log(2)))
    assert frontier_fit(points[:3]) is None


def test_a_known_start_is_not_fitted() -> None:
    points = [(d, d * (0.8 - 0.3 * math.log(d))) for d in (0.5, 1.0, 2.0, 4.0)]
    fit = frontier_fit(points, start=0.0)
    assert fit is not None
    assert (fit.start, round(fit.alpha, 6), round(fit.beta, 6)) == (0.0, 0.8, 0.3)


def test_points_of_the_frontier_are_where_both_were_measured() -> None:
    runs = {7: {"kl": {1: 4.0, 2: -1e-9, 3: 9.0}, "gold": {1: 0.5, 2: 0.7}}, 8: {"kl": {1: 1.0}, "gold": {1: 0.6}}}
    assert frontier_points(runs, "kl", "gold", {}) == [(0.0, 0.7), (1.0, 0.6), (2.0, 0.5)]
    above = frontier_points(runs, "kl", "gold", {7: 0.5, 8: 0.25})
    assert [round(score, 9) for _, score in above] == [0.2, 0.35, 0.0]
