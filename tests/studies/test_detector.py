"""The detector's rule on curves whose truth is written by hand."""

from __future__ import annotations

import pytest

from lit_rlhf.callbacks.collapse_rule import RuleConfig
from lit_rlhf.studies.detector import detector_cells, first_fall, outcome
from lit_rlhf.studies.plan import Step, Study
from lit_rlhf.studies.results import Curve

FALLS = {10: 60.0, 20: 64.0, 30: 58.0}
HOLDS = {10: 60.0, 20: 64.0, 30: 60.0}


def run(win: Curve, *, onset: int | None) -> dict[str, Curve]:
    """40 iterations; from ``onset`` on KL and length are up."""
    late = [onset is not None and i >= onset for i in range(40)]
    return {
        "win": win,
        "rollout/kl": {i: 0.3 if up else 0.001 for i, up in enumerate(late)},
        "rollout/response_length": {i: 30.0 if up else 15.0 for i, up in enumerate(late)},
    }


@pytest.mark.parametrize(
    ("win", "onset", "told"),
    [
        (FALLS, 20, "in time"),
        (FALLS, 29, "late"),
        (FALLS, None, "missed"),
        (HOLDS, 20, "false alarm"),
        (HOLDS, None, "quiet"),
    ],
)
def test_outcomes(win: Curve, onset: int | None, told: str) -> None:
    assert outcome(run(win, onset=onset), RuleConfig(patience=3)).told == told


def test_a_fall_is_from_the_highest_before_it() -> None:
    assert first_fall([(10, 50.0), (20, 46.0), (30, 60.0), (40, 55.5), (50, 55.0)], 5) == 50
    assert first_fall([(10, 50.0), (20, 55.0)], 5) is None
    assert first_fall([], 5) is None


def test_a_fall_for_good_has_no_return() -> None:
    rates = [(10, 60.0), (20, 54.0), (30, 61.0), (40, 55.0), (50, 56.0), (60, 62.0), (70, 50.0)]
    assert first_fall(rates, 5) == 20
    assert first_fall(rates, 5, for_good=True) == 70
    assert first_fall(rates[:5], 5, for_good=True) == 40
    assert first_fall(rates[:6], 5, for_good=True) is None


def test_a_run_without_a_judge_has_no_truth() -> None:
    with pytest.raises(ValueError, match="no win rate"):
        outcome({"rollout/kl": {0: 0.1}})
    with pytest.raises(ValueError, match="did not log 'rollout/kl'"):
        outcome({"win": HOLDS})


def test_the_table_counts_by_arm_and_in_all() -> None:
    study = Study(seeds=[1, 2], arms={"a": Step(config="x", title="arm A"), "b": Step(config="x")})
    results = {
        "a": {1: run(FALLS, onset=20), 2: run(FALLS, onset=18)},
        "b": {1: run(HOLDS, onset=None), 2: {"rollout/kl": {0: 0.0}}},
    }
    header, rows = detector_cells(study, results)
    assert dict(zip(header, rows[0], strict=True)) == {
        "arm": "arm A", "seeds": "2", "fell": "2", "in time": "2", "late": "0", "missed": "0", "false alarms": "0",
        "iterations ahead": "10 (9 to 11)",
    }  # fmt: skip
    assert rows[1] == ("b", "1", "0", "0", "0", "0", "0", "")
    assert rows[2][:4] == ("all arms", "3", "2", "2")
    assert detector_cells(study, {"b": {2: {"rollout/kl": {0: 0.0}}}})[1] == []
