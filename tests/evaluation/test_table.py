from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.evaluation.table import PolicyEvaluation, ResultTable
from lit_rlhf.evaluation.win_rate import WinRate


def rate(mean: float, low: float = 0.4, high: float = 0.7) -> WinRate:
    return WinRate(mean - 0.05, 0.1, 1 - mean - 0.05, mean, low, high, 300, 290)


@pytest.fixture
def table() -> ResultTable:
    sft = PolicyEvaluation(
        name="SFT", judge_score=0.02, score=0.2, kl=0.0, perplexity=1.8, response_length=13.1, eos_rate=1.0
    )
    best = PolicyEvaluation(
        name="PPO-max",
        seeds=(1, 2, 3),
        win_rates={"helpful": rate(0.55), "all": rate(0.65), "harmless": rate(0.8)},
        judge_score=0.42,
        score=1.9,
        kl=0.05,
        perplexity=1.6,
        response_length=19.25,
        eos_rate=0.995,
    )
    worst = PolicyEvaluation(
        name="vanilla | PPO [x]", win_rates={"all": rate(0.35, math.nan, math.nan)}, judge_score=-0.3
    )
    return ResultTable(policies=[sft, best, worst])


def test_markdown_is_one_row_a_policy(table):
    lines = table.to_markdown().splitlines()
    assert lines[0] == (
        "| policy | win/tie/lose | win % all | win % helpful | win % harmless | gold | score | KL | perplexity "
        "| length | ended % |"
    )
    assert lines[2] == "| SFT | - | - | - | - | +0.02 | +0.20 | 0.000 | 1.80 | 13.1 | 100.0 |"
    assert lines[3] == (
        "| PPO-max | 60/10/30 | 65.0 [40.0, 70.0] | 55.0 [40.0, 70.0] | 80.0 [40.0, 70.0] "
        "| +0.42 | +1.90 | 0.050 | 1.60 | 19.2 | 99.5 |"
    )
    assert lines[4].startswith("| vanilla \\| PPO [x] | 30/10/60 | 35.0 [n/a] | - | - | -0.30 | - |")
    assert lines[6] == table.caption()


def test_what_was_measured_of_none_has_no_column_and_no_explanation(table):
    rows = [PolicyEvaluation(name="a"), PolicyEvaluation(name="b", win_rates={"all": rate(0.5)}, response_length=3.0)]
    bare = ResultTable(policies=rows, judge="people")
    assert bare.cells()[0] == ["policy", "win/tie/lose", "win % all", "length"]
    assert bare.cells()[1][0] == ["a", "-", "-", "-"]
    assert "length: tokens" in bare.caption()
    assert "KL" not in bare.caption()
    assert "KL: to the reference" in table.caption()


def test_terminal_fits_80_columns_and_shows_brackets(table):
    out = io.StringIO()
    Console(file=out, width=80).print(table.to_rich())
    text = out.getvalue()
    assert "65.0 [40.0, 70.0]" in text
    assert "vanilla | PPO [x]" in text
    assert "…" not in text


def test_without_win_rates_there_are_no_such_columns():
    table = ResultTable(policies=[PolicyEvaluation(name="SFT", judge_score=0.1)], judge="helpful judge")
    assert table.to_markdown().splitlines()[0] == "| policy | helpful judge |"


def test_groups_of_the_users_own_come_after_the_known_ones():
    table = ResultTable(policies=[PolicyEvaluation(name="a", win_rates={"code": rate(0.5), "all": rate(0.5)})])
    assert "| win % all | win % code |" in table.to_markdown()


def test_round_trip_through_json(table, tmp_path):
    path = table.write(tmp_path / "deep" / "table.json")
    read = ResultTable.read(path)
    assert read.policies[:2] == table.policies[:2]
    assert math.isnan(read.policies[2].win_rates["all"].low)
    assert read.to_markdown() == table.to_markdown()
    content = json.loads(path.read_text())
    assert content["policies"][2]["win_rates"]["all"]["low"] is None
    assert content["policies"][1]["seeds"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no list 'policies'"),
        ('{"policies": [{"judge_score": 1}]}', "no key 'name'"),
        ('{"policies": [{"name": "a", "glod": 1}]}', "unknown key 'glod'; the keys are eos_rate, judge_score"),
        ('{"policies": [{"name": "a", "win_rates": {"all": {"win": 1}}}]}', "win rate 'all' .* must have the keys"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        ResultTable.read(path)


def test_length_controlled_rates_and_p_values_have_columns_where_they_are_measured(tmp_path):
    row = PolicyEvaluation(
        name="a",
        win_rates={"all": rate(0.5)},
        p_values={"all": 0.0004},
        length_controlled={"all": Interval(0.41, 0.5, math.nan)},
    )
    table = ResultTable(policies=[PolicyEvaluation(name="SFT"), row])
    assert table.to_markdown().splitlines()[0] == "| policy | win/tie/lose | win % all | LC win % | p |"
    assert "| 50.0 [n/a] | <0.001 |" in table.to_markdown()
    assert "LC win %: were both of equal length" in table.caption()
    read = ResultTable.read(table.write(tmp_path / "t.json"))
    assert read.policies[1].p_values == {"all": 0.0004}
    assert read.policies[1].length_controlled["all"].low == 0.41
    assert math.isnan(read.policies[1].length_controlled["all"].high)
