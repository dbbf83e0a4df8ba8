from __future__ import annotations

import math

import pytest
import scipy.stats
import torch

from lit_rlhf.evaluation import intervals
from lit_rlhf.evaluation.intervals import Interval, bootstrap, cluster_bootstrap, proportion_interval, wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (517, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(successes, trials, confidence):
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    got = wilson_interval(successes, trials, confidence=confidence)
    assert got == pytest.approx((expected.low, successes / trials, expected.high), abs=1e-12)


def test_wilson_takes_half_successes_and_no_trials():
    low, mean, high = wilson_interval(2.5, 5)
    assert mean == 0.5
    assert low == pytest.approx(1 - high)
    assert all(math.isnan(x) for x in wilson_interval(0, 0))
    assert not wilson_interval(0, 0).is_defined


@pytest.mark.parametrize("successes", [-1, 6])
def test_wilson_refuses_impossible_counts(successes):
    with pytest.raises(ValueError, match=r"`successes` \(-?\d\) must lie in"):
        wilson_interval(successes, 5)


def test_mean_weighs_every_value_not_every_cluster():
    interval = cluster_bootstrap([1, 1, 1, 0], ["a", "a", "a", "b"])
    assert interval.mean == 0.75
    assert interval.low == 0.0
    assert interval.high == 1.0


def test_a_bootstrap_sample_weighs_its_clusters_by_size():
    """Two clusters, 9 ones and 1 zero: samples are 0 (1/4), 9/10 (1/2) and 1 (1/4), so the middle 40 % is 0.9."""
    interval = cluster_bootstrap([1] * 9 + [0], ["a"] * 9 + ["b"], confidence=0.4)
    assert interval == pytest.approx((0.9, 0.9, 0.9))


def test_order_and_names_of_rows_do_not_matter_within_clusters():
    one = cluster_bootstrap([1, 0, 0.5, 1], ["a", "a", "b", "b"])
    two = cluster_bootstrap([0, 1, 1, 0.5], [7, 7, ("x",), ("x",)])
    assert one == two


def test_seeded_and_leaves_the_global_generator_alone():
    values, clusters = [0.0, 1.0, 2.0, 5.0, 9.0], list("abcde")
    state = torch.get_rng_state()
    one = cluster_bootstrap(values, clusters, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert one == cluster_bootstrap(values, clusters, seed=3)
    assert one != cluster_bootstrap(values, clusters, seed=4)


def test_blocks_of_draws_do_not_change_the_coverage_of_samples(monkeypatch):
    values = torch.randn(50, generator=torch.Generator().manual_seed(0)).tolist()
    whole = bootstrap(values)
    monkeypatch.setattr(intervals, "_DRAWS_AT_ONCE", 333)
    assert bootstrap(values) == whole


def test_interval_of_normal_data_has_the_known_width():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, mean, high = bootstrap(values.tolist(), num_samples=4000)
    half = 1.96 * float(values.std()) / math.sqrt(2000)
    assert mean == pytest.approx(float(values.mean()))
    assert high - mean == pytest.approx(half, rel=0.08)
    assert mean - low == pytest.approx(half, rel=0.08)


def test_repeating_rows_within_a_cluster_does_not_narrow_the_interval():
    values = torch.rand(40, generator=torch.Generator().manual_seed(0)).tolist()
    alone = cluster_bootstrap(values, range(40))
    repeated = cluster_bootstrap(values * 10, list(range(40)) * 10)
    naive = bootstrap(values * 10)
    assert repeated == pytest.approx(alone)
    assert naive.high - naive.low < 0.5 * (repeated.high - repeated.low)


def _coverage(interval_of, *, seed: int) -> float:
    """Share of 400 simulated studies (60 prompts x 4 correlated responses) whose interval holds the true mean 0.5."""
    generator = torch.Generator().manual_seed(seed)
    hits = 0
    for _ in range(400):
        ease = torch.rand(60, 1, generator=generator)
        wins = (torch.rand(60, 4, generator=generator) < ease).double().flatten().tolist()
        low, _, high = interval_of(wins)
        hits += low <= 0.5 <= high
    return hits / 400


def test_cluster_bootstrap_covers_and_the_naive_interval_does_not():
    prompts = [p for p in range(60) for _ in range(4)]
    clustered = _coverage(lambda wins: cluster_bootstrap(wins, prompts, num_samples=400), seed=0)
    naive = _coverage(lambda wins: wilson_interval(sum(wins), len(wins)), seed=0)
    assert 0.92 <= clustered <= 0.98
    assert naive < 0.9


def test_wilson_covers_independent_trials():
    trials, rates = 40, [r / 100 for r in range(5, 100, 5)]
    intervals_by_wins = [wilson_interval(wins, trials) for wins in range(trials + 1)]
    coverage = [
        sum(scipy.stats.binom.pmf(w, trials, r) for w, i in enumerate(intervals_by_wins) if i.low <= r <= i.high)
        for r in rates
    ]
    assert 0.945 <= sum(coverage) / len(coverage) <= 0.96
    assert min(coverage) > 0.9


def test_a_single_cluster_has_no_interval():
    interval = cluster_bootstrap([1, 0], ["only", "only"])
    assert interval.mean == 0.5
    assert not interval.is_defined
    assert Interval(0.1, 0.2, 0.3).is_defined


@pytest.mark.parametrize(
    ("values", "clusters", "options", "message"),
    [
        ([1.0], ["a", "b"], {}, r"`values` \(1\) and `clusters` \(2\) must have the same length"),
        ([], [], {}, "at least one number"),
        ([1.0, math.nan], ["a", "b"], {}, "number 1 is nan"),
        ([1.0, 2.0], ["a", "b"], {"confidence": 95}, r"`confidence` \(95\)"),
        ([1.0, 2.0], ["a", "b"], {"num_samples": 0}, r"`num_samples` \(0\)"),
    ],
)
def test_errors_name_the_argument(values, clusters, options, message):
    with pytest.raises(ValueError, match=message):
        cluster_bootstrap(values, clusters, **options)


def test_proportion_picks_the_interval_that_fits():
    wins = [1, 0, 1, 1, 0.5, 0]
    assert proportion_interval(wins) == wilson_interval(3.5, 6)
    assert proportion_interval(wins, list("abcdef")) == wilson_interval(3.5, 6)
    assert proportion_interval(wins, list("aabbcc")) == cluster_bootstrap(wins, list("aabbcc"))
    assert not proportion_interval([]).is_defined


def test_proportion_never_claims_certainty():
    assert proportion_interval([1.0] * 6, list("aabbcc")) == wilson_interval(3, 3)
    assert proportion_interval([1.0, 0.0] * 3, list("aabbcc")) == wilson_interval(1.5, 3)
    assert proportion_interval([1.0, 1.0], ["a", "a"]) == wilson_interval(1, 1)
