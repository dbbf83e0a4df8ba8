import math
import random

import pytest

from lit_rlhf.evaluation.judges.base import by_margin
from lit_rlhf.evaluation.win_rate import p_value, shares, win_rate, win_rates_by


def against(scores, baselines, margin=0.08):
    return [[by_margin(s, b, tie_margin=margin) for b in row] for s, row in zip(scores, baselines, strict=True)]


def test_counts_wins_ties_and_losses_with_ties_half():
    rate = win_rate(against([1.0, 0.0, 0.5], [[0.0, 1.0], [0.05], [1.0]]))
    assert (rate.win, rate.tie, rate.lose) == pytest.approx((0.5 / 3, 1.5 / 3, 1 / 3))
    assert rate.rate == pytest.approx(1.25 / 3)
    assert rate.prompts == rate.clusters == 3


def test_a_model_against_its_own_samples_is_even():
    rng = random.Random(0)
    draws = [[rng.choice([-1.0, 1.0]) for _ in range(5)] for _ in range(600)]
    rate = win_rate(against([d[0] for d in draws], [d[1:] for d in draws]))
    assert rate.low < 0.5 < rate.high
    assert rate.high - rate.low < 0.08


def test_copies_of_a_prompt_do_not_narrow_a_clustered_interval():
    rng = random.Random(1)
    outcomes = [[rng.choice(["win", "lose"])] for _ in range(100)]
    one = win_rate(outcomes, seed=3)
    thrice = win_rate(outcomes * 3, clusters=list(range(100)) * 3, seed=3)
    naive = win_rate(outcomes * 3, seed=3)
    assert (thrice.rate, thrice.low, thrice.high) == pytest.approx((one.rate, one.low, one.high))
    assert naive.high - naive.low < 0.7 * (thrice.high - thrice.low)


def test_intervals_of_clustered_prompts_cover_the_truth_as_often_as_they_say():
    """1,000 studies of 200 clusters, two wordings each, that share three quarters of their luck."""
    rng = random.Random(2)
    hits = 0
    for trial in range(1000):
        outcomes, clusters = [], []
        for cluster in range(200):
            luck = rng.random()
            for _ in range(2):
                x = luck if rng.random() < 0.75 else rng.random()
                outcomes.append(["win" if x < 0.55 else "tie" if x < 0.65 else "lose"])
                clusters.append(cluster)
        rate = win_rate(outcomes, clusters=clusters, resamples=500, seed=trial)
        hits += rate.low <= 0.6 <= rate.high
    assert 930 <= hits <= 970


def test_where_all_clusters_say_the_same_the_interval_claims_no_certainty():
    """Wilson's interval for n of n: its lower end is n / (n + z^2)."""
    won = win_rate([["win", "win"]] * 20, clusters=[i // 2 for i in range(20)])
    assert (won.rate, won.high) == (1.0, pytest.approx(1.0))
    assert won.low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    lost, tied = win_rate([["lose"]] * 10), win_rate([["tie"]] * 10)
    assert (lost.low, lost.high) == (pytest.approx(0.0), pytest.approx(1 - won.low))
    assert tied.low == pytest.approx(1 - tied.high)
    assert 0.2 < tied.low < 0.3
    thirds = win_rate([["win", "lose", "lose"]] * 30)  # equal but for rounding
    assert thirds.high - thirds.low > 0.2
    assert math.isnan(win_rate([["win"]] * 5, clusters=[0] * 5).low)  # one cluster says nothing of the spread


def test_p_values_are_uniform_where_there_is_no_difference_and_small_where_there_is():
    rng = random.Random(3)
    even = [p_value([[rng.choice(["win", "lose"])] for _ in range(80)], draws=200, seed=t) for t in range(400)]
    assert 0.02 <= sum(p <= 0.05 for p in even) / 400 <= 0.085
    assert p_value([["win"]] * 40 + [["lose"]] * 10) < 0.001
    assert p_value([["tie"]] * 40) == 1.0
    # what one cluster says ten times it says once
    assert p_value([["win"]] * 10, clusters=[0] * 10) > 0.9


def test_labels_are_compared_apart_and_together_in_the_order_of_the_data():
    rates = win_rates_by(["helpful", "harmless", "helpful"], [["win"], ["lose"], ["win"]])
    assert list(rates) == ["all", "helpful", "harmless"]
    assert {k: v.rate for k, v in rates.items()} == {"all": pytest.approx(2 / 3), "harmless": 0.0, "helpful": 1.0}
    assert list(win_rates_by(["all", "all"], [["win"], ["lose"]])) == ["all"]


def test_a_margin_belongs_to_the_tie():
    assert [by_margin(s, 1.0, tie_margin=0.5) for s in (1.5, 1.51, 0.5, 0.49)] == ["tie", "win", "tie", "lose"]
    assert shares(["win", "tie", "tie", "lose"]) == (0.25, 0.5, 0.25)


@pytest.mark.parametrize(
    ("outcomes", "clusters", "text"),
    [([], None, "empty"), ([["win"]], [1, 2], "one entry per prompt"), ([[]], None, "at least one outcome")],
)
def test_bad_input(outcomes, clusters, text):
    for function in (win_rate, p_value):
        with pytest.raises(ValueError, match=text):
            function(outcomes, clusters=clusters)
    with pytest.raises(ValueError, match="one entry per prompt"):
        win_rates_by(["a"], [["win"], ["lose"]])
