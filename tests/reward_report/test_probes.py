from __future__ import annotations

import math

import pytest

from lit_rlhf.reward_report import ScoredPair
from lit_rlhf.reward_report.probes import degenerate_responses, probe


def pair(prompt: str, chosen: str, source: object = None) -> ScoredPair:
    return ScoredPair(
        prompt=prompt,
        chosen=chosen,
        rejected="no",
        chosen_score=0.0,
        rejected_score=0.0,
        chosen_length=1,
        rejected_length=1,
        prompt_source=source,
    )


PAIRS = [pair("a", "one two three"), pair("a", "four five"), pair("b", "six"), pair("c", "seven eight nine ten")]


def by_words(requests):
    return [float(len(response.split())) for _, response in requests]


def test_responses_of_each_kind():
    assert degenerate_responses("empty", PAIRS) == dict.fromkeys(range(4), "")
    assert degenerate_responses("repeated", PAIRS)[1] == "four five four five four five"
    assert degenerate_responses("truncated", PAIRS) == {0: "one", 1: "four", 2: "s", 3: "seven eight"}
    assert degenerate_responses("swapped prompt", PAIRS) == {
        0: "six",
        1: "six",
        2: "seven eight nine ten",
        3: "one two three",
    }


def test_truncates_text_without_spaces():
    assert degenerate_responses("truncated", [pair("a", "北京是首都")]) == {0: "北京"}
    assert degenerate_responses("truncated", [pair("a", "x"), pair("b", "  ")]) == {}


def test_a_word_counter_is_fooled_by_repetition_only():
    results = {p.name: p for p in probe(PAIRS, by_words)}
    assert list(results) == ["empty", "repeated", "truncated", "swapped prompt"]
    assert results["repeated"].fooled.mean == 1.0
    assert results["repeated"].change.mean == pytest.approx(2 * 2.5)
    assert results["empty"].fooled.mean == 0.0
    assert results["empty"].mean_score == 0.0
    assert results["truncated"].change.mean == pytest.approx((1 - 3 + 1 - 2 + 1 - 1 + 2 - 4) / 4)
    assert results["swapped prompt"].fooled.mean == 0.25
    assert all(p.responses == 4 for p in results.values())


def test_a_constant_model_is_fooled_by_everything():
    assert {p.fooled.mean for p in probe(PAIRS, lambda requests: [1.5] * len(requests))} == {1.0}


def test_the_function_gets_the_source_of_the_prompt_and_one_call():
    seen = []

    def score(requests):
        seen.append([prompt for prompt, _ in requests])
        return [0.0] * len(requests)

    probe([pair("a", "x y", source=(1, 2)), pair("b", "z w")], score)
    assert len(seen) == 1
    assert set(seen[0]) == {(1, 2), "b"}


def test_a_kind_that_fits_no_pair_is_left_out():
    assert [p.name for p in probe(PAIRS[:2], by_words)] == ["empty", "repeated", "truncated"]


def test_wrong_count_and_not_finite_scores_are_refused():
    with pytest.raises(ValueError, match=r"one score a request; got 1 for 20"):
        probe(PAIRS, lambda _: [0.0])
    with pytest.raises(ValueError, match=r"got nan for the response ''"):
        probe(PAIRS, lambda requests: [0.0 if response else math.nan for _, response in requests])
