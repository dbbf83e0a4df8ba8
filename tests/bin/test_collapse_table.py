"""The table that says whether flags came in time: on runs whose truth is written by hand."""

from __future__ import annotations

import csv
import json

import pytest
from studies.collapse_table import judge_run, judged, main

from lit_rlhf.callbacks.collapse_rule import RuleConfig
from lit_rlhf.evaluation.answers import read_answers
from lit_rlhf.evaluation.judges import ScoreJudge
from lit_rlhf.reports.run_data import load_run
from lit_rlhf.studies.detector import replay

UPDATES = 2


def make(root, *, onset=None, wins=()):
    """A run of 40 iterations; from ``onset`` KL and length are up. ``wins``: (step, prompts won of 10)."""
    root.mkdir(parents=True)
    with (root / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", "rollout/kl", "rollout/response_length"])
        for step in range(40 * UPDATES):
            late = onset is not None and step // UPDATES >= onset
            writer.writerow([step // UPDATES, step, 0.3 if late else 0.001, 30 if late else 15])
    (root / "evaluations").mkdir()
    for step, won in wins:
        rows = [{**ROW, "row": k, "prompt": str(k), "gold": 1.0 if k < won else -1.0} for k in range(10)]
        write(root / f"evaluations/val-step{step:06d}.jsonl", rows)
    return root


ROW = {"sample": 0, "record": {}, "response": "yes", "score": 0.0}
GOLD = ScoreJudge("gold", tie_margin=0.08)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def baseline(tmp_path):
    path = tmp_path / "sft.jsonl"
    write(path, [{**ROW, "row": k, "prompt": str(k), "gold": 0.0} for k in range(10)])
    return path


FALL = ((20, 6), (40, 8), (60, 5))  # after 10, 20 and 30 iterations


@pytest.mark.parametrize(
    ("onset", "stable", "wins", "outcome"),
    [
        (20, False, FALL, "in time"),
        (29, False, FALL, "late"),
        (28, False, FALL, "in time"),
        (None, False, FALL, "missed"),
        (20, True, ((20, 6), (40, 7)), "false alarm"),
        (None, True, ((20, 6), (40, 7)), "quiet"),
        (20, False, ((20, 6), (40, 7)), "early"),
    ],
)
def test_outcomes(tmp_path, baseline, onset, stable, wins, outcome):
    root = make(tmp_path / "run", onset=onset, wins=wins)
    pair = ["-", str(root)] if stable else [str(root), "-"]
    main(["--group", str(baseline), *pair, "--out", str(tmp_path / "t")])
    (row,) = json.loads((tmp_path / "t.json").read_text())
    assert row["outcome"] == outcome
    assert row["fell_at"] == (30 if wins is FALL else None)


def test_win_rates_are_placed_after_the_update_they_judge(tmp_path, baseline):
    run = load_run(make(tmp_path / "run", wins=((0, 5), *FALL)))
    assert judged(run, read_answers(baseline), judge=GOLD) == [(0, 0.5), (10, 0.6), (20, 0.8), (30, 0.5)]


def test_the_replayed_flag_is_the_rules(tmp_path):
    run = load_run(make(tmp_path / "run", onset=12))
    flag = replay(run.series, RuleConfig(patience=3))
    assert (flag.iteration, flag.since) == (14, 12)
    with pytest.raises(ValueError, match="did not log 'rollout/kl'"):
        replay({"loss": [(0, 1.0)]}, RuleConfig())


def test_no_evaluations_is_an_error(tmp_path):
    run = load_run(make(tmp_path / "run"))
    with pytest.raises(ValueError, match="has no evaluations"):
        judged(run, [], judge=GOLD)
    verdict = judge_run(run, [(0, 0.5)], stable=True, config=RuleConfig())
    assert verdict.outcome == "quiet"
