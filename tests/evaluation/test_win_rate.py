import random

import pytest

from lit_rlhf.evaluation.win_rate import win_rate, win_rates_by


def test_counts_wins_ties_and_losses_with_ties_half():
    rate = win_rate([1.0, 0.0, 0.5], [[0.0, 1.0], [0.05], [1.0]])
    assert (rate.win, rate.tie, rate.lose) == pytest.approx((0.5 / 3, 1.5 / 3, 1 / 3))
    assert rate.rate == pytest.approx(1.25 / 3)
    assert rate.prompts == rate.clusters == 3


def test_a_model_against_its_own_samples_is_even():
    rng = random.Random(0)
    draws = [[rng.choice([-1.0, 1.0]) for _ in range(5)] for _ in range(600)]
    rate = win_rate([d[0] for d in draws], [d[1:] for d in draws])
    assert rate.low < 0.5 < rate.high
    assert rate.high - rate.low < 0.08


def test_copies_of_a_prompt_do_not_narrow_a_clustered_interval():
    rng = random.Random(1)
    scores = [rng.choice([0.0, 1.0]) for _ in range(100)]
    base = [[0.5]] * 100
    one = win_rate(scores, base, seed=3)
    thrice = win_rate(scores * 3, base * 3, clusters=list(range(100)) * 3, seed=3)
    naive = win_rate(scores * 3, base * 3, seed=3)
    assert (thrice.rate, thrice.low, thrice.high) == pytest.approx((one.rate, one.low, one.high))
    assert naive.high - naive.low < 0.7 * (thrice.high - thrice.low)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = random.Random(2)
    hits = 0
    for trial in range(200):
        scores = [float(rng.random() < 0.7) for _ in range(80)]
        rate = win_rate(scores, [[0.5]] * 80, resamples=300, seed=trial)
        hits += rate.low <= 0.7 <= rate.high
    assert 0.88 <= hits / 200 <= 0.99


def test_labels_are_compared_apart_and_together():
    rates = win_rates_by(["helpful", "harmless", "helpful"], [1.0, 0.0, 1.0], [[0.0], [1.0], [0.0]])
    assert {k: v.rate for k, v in rates.items()} == {"all": pytest.approx(2 / 3), "harmless": 0.0, "helpful": 1.0}


@pytest.mark.parametrize(
    ("scores", "base", "text"),
    [([], [], "empty"), ([1.0], [[1.0], [2.0]], "one entry a prompt"), ([1.0], [[]], "at least one score")],
)
def test_bad_input(scores, base, text):
    with pytest.raises(ValueError, match=text):
        win_rate(scores, base)
