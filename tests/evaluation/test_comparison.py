"""From answers and a judge to tables: shared prompts, groups, ratings, agreement, and what is written."""

from __future__ import annotations

import json
import math
import random

import pytest

from lit_rlhf.evaluation.agreement import agreement
from lit_rlhf.evaluation.comparison import Grouping, against_baseline, judge_policies, length, summarize
from lit_rlhf.evaluation.judges import Judge, ScoreJudge, Verdict
from lit_rlhf.evaluation.length_control import length_controlled
from lit_rlhf.evaluation.ratings import elo_ratings
from lit_rlhf.evaluation.table import ResultTable
from lit_rlhf.evaluation.verdicts import order_bias, read_outcomes, verdict_outcomes, verdict_row
from lit_rlhf.evaluation.win_rate import win_rate
from tests.evaluation.made_up_answers import answers, row, write

GOLD = ScoreJudge("gold", tie_margin=0.08)


def scored(scores, **more):
    """Answers with saved scores; every second prompt is harmless, three share an argument."""
    from lit_rlhf.evaluation.answers import answers_from_rows

    rows = [
        row(i, "x" * 3, gold=float(s), record={"kind": ["helpful", "harmless"][i % 2], "argument": i // 3}, **more)
        for i, s in enumerate(scores)
    ]
    return answers_from_rows(rows)


@pytest.fixture
def policies():
    rng = random.Random(0)
    draws = [[rng.gauss(mean, 1) for _ in range(60)] for mean in (0, 0, 1, -1)]
    sft = [*scored(draws[0]), *scored(draws[1], sample=1)]
    return {"SFT": sft, "PPO": scored(draws[2]), "worse": scored(draws[3])}


def test_every_policy_meets_every_sample_of_the_baseline(policies):
    judged = judge_policies(policies, GOLD)
    assert [(each.a, each.b, len(each.verdicts)) for each in judged] == [("PPO", "SFT", 120), ("worse", "SFT", 120)]
    result = summarize(policies, judged, GOLD, grouping=Grouping(), length_control=False)
    outcomes = [[verdict.outcome for _, verdict in rows] for rows in judged[0].by_prompt().values()]
    assert result.table.policies[1].win_rates["all"] == win_rate(outcomes)
    assert result.table.policies[0].win_rates == {}
    assert result.table.policies[0].judge_score == pytest.approx(sum(a.row["gold"] for a in policies["SFT"]) / 120)


def test_clusters_and_groups_are_what_the_user_names(policies):
    grouping = Grouping(cluster_by=("argument",), split_by="kind")
    row = against_baseline("PPO", policies["PPO"], policies["SFT"], GOLD, grouping=grouping)
    assert list(row.win_rates) == ["all", "helpful", "harmless"]
    assert {k: (v.prompts, v.clusters) for k, v in row.win_rates.items()} == {
        "all": (60, 20), "helpful": (30, 20), "harmless": (30, 20),
    }  # fmt: skip
    assert set(row.p_values) == set(row.win_rates)
    for wrong in (Grouping(cluster_by=("nope",)), Grouping(split_by="nope")):
        with pytest.raises(
            ValueError, match=r"\(nope\) is not a column of prompt 0; its columns are prompt, kind, arg"
        ):
            against_baseline("PPO", policies["PPO"], policies["SFT"], GOLD, grouping=wrong)


def test_all_pairs_give_duels_and_ratings_in_the_right_order(policies, tmp_path):
    pytest.importorskip("sklearn")
    judged = judge_policies(policies, GOLD, all_pairs=True)
    result = summarize(policies, judged, GOLD)
    assert [(duel.a, duel.b) for duel in result.duels] == [("worse", "PPO")]
    assert result.duels[0].rate.high < 0.2
    ratings = {name: rating.mean for name, rating in result.ratings.items()}
    assert ratings["worse"] < ratings["SFT"] == 1000.0 < ratings["PPO"]
    content = json.loads(result.write(tmp_path / "deep" / "r.json").read_text())
    assert content["ratings"]["SFT"] == {"low": 1000.0, "mean": 1000.0, "high": 1000.0}
    assert content["judge_details"] == {"name": "gold", "type": "ScoreJudge", "score": "gold", "tie_margin": 0.08}
    assert ResultTable.read(tmp_path / "deep" / "r.json").policies == result.table.policies
    text = result.to_markdown()
    assert (
        "**Against each other**\n\n| policy | against | win % | p |\n| --- | ---: | ---: | ---: |\n| worse | PPO |"
        in text
    )
    assert "LC win %" in text


class LeavesOut(Judge):
    """Judges every second pair; likes an order."""

    def compare(self, prompt, a, b):
        return Verdict(outcome="tie", votes=("win", "lose"))

    def judge(self, pairs):
        return [self.compare(p.prompt, p.a, p.b) if i % 2 else None for i, p in enumerate(pairs)]


def test_what_is_left_out_is_said_and_nothing_at_all_is_an_error():
    policies = {"a": answers(["x", "", "z", "w"]), "b": answers(["1", "2", "3", ""])}
    result = summarize(policies, judge_policies(policies, LeavesOut()), LeavesOut(), length_control=False)
    assert result.notes == [
        "1 of 4 responses of a are empty.",
        "1 of 4 responses of b are empty.",
        "2 of 4 pairs have no verdict and are skipped.",
        "Asked in both orders, the judge contradicts itself in 2 of 2 pairs, which tie; 100 % of its votes are for the "
        "one shown first.",
    ]
    assert result.table.policies[1].win_rates["all"].prompts == 2
    one = {"a": answers(["x"]), "b": answers(["y"])}
    with pytest.raises(ValueError, match="No pair of b and a was judged"):
        summarize(one, judge_policies(one, LeavesOut()), LeavesOut(), length_control=False)


def test_verdicts_are_kept_as_they_come(monkeypatch):
    monkeypatch.setattr("lit_rlhf.evaluation.comparison.CHUNK", 2)
    kept = []

    class Breaks(ScoreJudge):
        def judge(self, pairs):
            if pairs[0].a.key == "4":
                raise ValueError("down")
            return super().judge(pairs)

    policies = {"a": scored(range(6)), "b": scored(range(6))}
    with pytest.raises(ValueError, match="down"):
        judge_policies(policies, Breaks("gold", tie_margin=0.0), keep=lambda *found: kept.extend(found[3]))
    assert [v.outcome for v in kept] == ["tie"] * 4


def test_order_bias_counts_places():
    votes = [("win", "win"), ("win", "lose"), ("tie", "win"), (None, "win"), ("win", "lose")]
    bias = order_bias([Verdict(outcome="tie", votes=v) for v in votes])
    # decided readable votes: first pair 2 (one for each place), second 2 and fifth 2 for the first place, third 1 not
    assert (bias.asked, bias.differing, bias.unreadable) == (4, 3, 1)
    assert bias.first == pytest.approx(5 / 7)
    assert math.isnan(order_bias([Verdict(outcome="tie", votes=("tie", "tie"))]).first)


def test_verdicts_on_disk_find_each_other_in_either_direction(tmp_path, policies):
    judged = judge_policies(policies, GOLD)
    rows = [verdict_row(x.a, x.b, pair, v) for x in judged for pair, v in x.rows()]
    outcomes = read_outcomes(write(tmp_path / "v.jsonl", rows))
    assert outcomes == verdict_outcomes(judged)
    turned = judge_policies({"PPO": policies["PPO"], "SFT": policies["SFT"]}, GOLD)
    shared = {k: v for k, v in verdict_outcomes(turned).items() if k in outcomes}
    assert len(shared) == 120
    assert all(outcomes[k] == v for k, v in shared.items())
    (tmp_path / "bad.jsonl").write_text(json.dumps(rows[0]) + '\n{"a": 1}\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2: no verdict"):
        read_outcomes(tmp_path / "bad.jsonl")


def test_agreement_is_krippendorffs():
    pytest.importorskip("krippendorff")
    same = agreement({"a": {1: "win", 2: "lose"}, "b": {1: "win", 2: "lose"}})
    assert (same.alpha, same.same, same.units) == (1.0, 1.0, 2)
    # Two judges, values -1, 0, 1: ordinal distances within units against all pairs, by hand. Marginals n(lose) = 2,
    # n(tie) = 1, n(win) = 3; delta(lose, tie)^2 = 1.5^2, delta(tie, win)^2 = 2^2, delta(lose, win)^2 = 3.5^2.
    three = agreement({"a": {1: "win", 2: "lose", 3: "tie"}, "b": {1: "win", 2: "lose", 3: "win"}})
    observed = 2 * 2.0**2 / 6
    expected = 2 * (2 * 1 * 1.5**2 + 1 * 3 * 2.0**2 + 2 * 3 * 3.5**2) / (6 * 5)
    assert three.alpha == pytest.approx(1 - observed / expected)
    assert three.same == pytest.approx(2 / 3)
    missing = agreement({"a": {1: "win", 2: "lose", 9: "tie"}, "b": {1: "win", 2: "lose"}, "c": {2: "lose"}})
    assert (missing.units, missing.alpha) == (2, 1.0)
    nothing = agreement({"a": {1: "win"}, "b": {2: "win"}})
    assert (nothing.units, math.isnan(nothing.alpha), math.isnan(nothing.same)) == (0, True, True)
    with pytest.raises(ValueError, match="at least two judges"):
        agreement({"a": {}})


def test_length_is_tokens_where_they_are_known_else_characters():
    assert [length(a) for a in (answers(["four"])[0], answers(["four"], tokens=2)[0])] == [4.0, 2.0]


# ---------------------------------------------------------------- regressions


def logistic_wins(rng, theta, phi, number, spread=10.0, shift=8.0):
    wins, gaps = [], []
    for _ in range(number):
        gap = rng.gauss(shift, spread)
        chance = 1 / (1 + math.exp(-(theta + phi * math.tanh(gap / spread))))
        wins.append([float(rng.random() < chance)])
        gaps.append([gap])
    return wins, gaps


def test_length_control_takes_out_what_length_alone_won():
    pytest.importorskip("sklearn")
    wins, gaps = logistic_wins(random.Random(0), 0.0, 2.0, 4000)
    raw = sum(w for (w,) in wins) / 4000
    fit = length_controlled(wins, gaps, num_samples=50)
    assert raw > 0.66
    assert fit.rate.mean == pytest.approx(0.5, abs=0.03)
    assert fit.rate.low < 0.5 < fit.rate.high
    assert fit.length_weight == pytest.approx(2.0, abs=0.3)
    assert fit.mean_difference == pytest.approx(8.0, abs=1.0)


def test_without_differences_of_length_it_is_the_win_rate():
    pytest.importorskip("sklearn")
    fit = length_controlled([[1.0], [1.0], [0.5], [0.0]], [[3.0]] * 4, num_samples=20)
    assert fit.rate.mean == pytest.approx(2.5 / 4, abs=1e-3)
    assert fit.length_weight == pytest.approx(0.0, abs=1e-6)
    all_won = length_controlled([[1.0]] * 5, [[1.0], [2.0], [3.0], [4.0], [5.0]], num_samples=5)
    assert all_won.rate.mean == 1.0
    assert not all_won.rate.is_defined  # resampling wins gives wins: no certainty is claimed
    many = length_controlled([[1.0, 1.0, 1.0, 0.0], [0.0]], [[0.0] * 4, [0.0]], num_samples=5)
    assert many.rate.mean == pytest.approx(3 / 8, abs=1e-3)  # each prompt weighs the same


def test_length_controlled_intervals_cover_the_truth():
    pytest.importorskip("sklearn")
    rng, hits = random.Random(1), 0
    for trial in range(60):
        wins, gaps = logistic_wins(rng, 0.4, 1.0, 150)
        rate = length_controlled(wins, gaps, num_samples=60, seed=trial).rate
        hits += rate.low <= 1 / (1 + math.exp(-0.4)) <= rate.high
    assert 0.85 <= hits / 60 <= 0.99


@pytest.mark.parametrize(
    ("wins", "gaps", "clusters", "text"),
    [([], [], None, "non-empty"), ([[1.0]], [[1.0, 2.0]], None, "the same"), ([[1.0]], [[1.0]], [1, 2], "one entry")],
)
def test_lengths_that_do_not_fit(wins, gaps, clusters, text):
    with pytest.raises(ValueError, match=text):
        length_controlled(wins, gaps, clusters=clusters)


def duels(rng, truth, number):
    names = list(truth)
    out = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            chance = 1 / (1 + 10 ** ((truth[b] - truth[a]) / 400))
            out[a, b] = [(k, float(rng.random() < chance)) for k in range(number)]
    return out


def test_ratings_find_the_strengths_that_made_the_results():
    pytest.importorskip("sklearn")
    truth = {"a": 1000.0, "b": 1150.0, "c": 900.0, "d": 1000.0}
    found = elo_ratings(duels(random.Random(2), truth, 1500), num_samples=200)
    assert list(found) == list(truth)
    assert found["a"] == (1000.0, 1000.0, 1000.0)
    for name in "bcd":
        assert found[name].mean == pytest.approx(truth[name], abs=25)
        assert found[name].low < truth[name] < found[name].high


def test_two_policies_have_the_rating_of_their_rate():
    """Bradley and Terry's maximum likelihood for two is 400 log10(p / (1 - p))."""
    pytest.importorskip("sklearn")
    found = elo_ratings({("a", "b"): [(i, float(i < 25)) for i in range(100)]}, num_samples=10)
    assert found["b"].mean == pytest.approx(1000 + 400 * math.log10(3), abs=1.0)


def test_ratings_need_a_path_between_all():
    with pytest.raises(ValueError, match="none reaches c"):
        elo_ratings({("a", "b"): [(0, 1.0)], ("c", "d"): [(0, 1.0)]})
    with pytest.raises(ValueError, match="at least two"):
        elo_ratings({})
