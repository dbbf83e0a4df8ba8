import random

from lit_rlhf.pocket.annotator import Annotator, sample_pair
from lit_rlhf.pocket.gold import gold_score
from lit_rlhf.pocket.world import Prompt

SHOP = Prompt("shop", ("apples",))
RIGHT, WRONG = "the shop for apples is the market .", "the shop for apples is the garage ."


def _share(annotator, first, second, draws=4000):
    rng = random.Random(0)
    return sum(annotator.prefers_first(rng, SHOP, first, second) for _ in range(draws)) / draws


def test_better_responses_win_but_not_always():
    assert 0.75 < _share(Annotator(), RIGHT, WRONG) < 0.9


def test_carelessness_and_flips_are_where_the_noise_comes_from():
    assert _share(Annotator(careless=0.0, flip=0.0), RIGHT, WRONG) > 0.98
    assert abs(_share(Annotator(careless=1.0), RIGHT, WRONG) - 0.5) < 0.03


def test_length_impresses():
    longer = RIGHT + " many people ask about this . it is important to know this ."
    assert _share(Annotator(), longer, RIGHT) > 0.57
    assert abs(_share(Annotator(length_bias=0.0), longer, RIGHT) - 0.5) < 0.03


def test_labels_agree_with_gold_far_better_than_chance_and_far_from_always():
    rng = random.Random(1)
    agree = []
    for _ in range(2000):
        prompt, chosen, rejected = sample_pair(rng, "train", Annotator())
        assert chosen != rejected
        gap = gold_score(prompt, chosen, ended=True) - gold_score(prompt, rejected, ended=True)
        if abs(gap) > 0.01:
            agree.append(gap > 0)
    assert 0.72 < sum(agree) / len(agree) < 0.88
