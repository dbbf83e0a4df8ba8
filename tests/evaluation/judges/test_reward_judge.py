"""Judges that compare numbers: saved ones, and those of any reward."""

from __future__ import annotations

import json
import math

import pytest
import torch

from lit_rlhf.evaluation.judges import Judge, RewardJudge, ScoreJudge, Verdict
from lit_rlhf.evaluation.judges.reward import margin_of, reward_request
from lit_rlhf.pocket.tokenizer import build_tokenizer
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rewards.python import PythonReward
from lit_rlhf.types import RewardOutput
from tests.evaluation.made_up_answers import answers, pairs


class Words(Reward):
    """Counts words and calls."""

    name = "words"
    asked = 0

    def score(self, request):
        self.asked += len(request.responses)
        return RewardOutput(scores=torch.tensor([float(len(text.split())) for text in request.responses]))


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(path)
    return str(path)


def test_the_higher_score_wins_by_more_than_the_margin(tokenizer_path):
    reward = Words()
    judge = RewardJudge(reward, tie_margin=1.0, tokenizer=tokenizer_path, batch_size=2)
    judge.setup()
    found = pairs(["lions eat", "lions", "lions"], ["lions eat meat .", "lions eat", "lions"])
    verdicts = judge.judge(found)
    assert [v.outcome for v in verdicts] == ["lose", "tie", "tie"]
    assert verdicts[0].scores == (2.0, 4.0)
    assert reward.asked == 5  # two of the six are equal answers to one prompt
    assert judge.judge(found) == verdicts
    assert reward.asked == 5  # each answer is scored once
    assert judge.name == "words"
    assert judge.describe()["tie_margin"] == 1.0


def test_a_python_reward_sees_the_row_and_whether_the_response_ended(tokenizer_path, tmp_path, monkeypatch):
    (tmp_path / "my_reward.py").write_text(
        "def score(prompts, responses, records):\n"
        "    return [r['bonus'] + 10 * r['ended'] + len(r['response_ids']) for r in records]\n"
    )
    monkeypatch.chdir(tmp_path)
    judge = RewardJudge(PythonReward("my_reward:score"), tie_margin=0.0, tokenizer=tokenizer_path)
    judge.setup()
    (pair,) = pairs(["lions eat"], ["lions"], record={"bonus": 1}, ended=True)
    assert judge.judge([pair])[0].scores == (14.0, 13.0)  # EOS included


def test_a_cut_response_has_no_eos(tokenizer_path):
    tokenizer = build_tokenizer()
    whole, cut = answers(["lions eat"])[0], answers(["lions eat"], ended=False)[0]
    request = reward_request(tokenizer, [whole, cut])
    assert request.rollout.response_lengths.tolist() == [3, 2]
    assert request.ended == [True, False]
    assert request.rollout.response_ids[0, 2] == tokenizer.eos_token_id


def test_a_reward_models_scores_are_those_of_its_training_layout(tmp_path):
    """The judge encodes saved text; the scores are those of `ResponseScorer`, which `lit-rlhf score` uses."""
    from transformers import AutoModelForCausalLM

    from lit_rlhf.commands.score import load_scorer
    from lit_rlhf.models.scalar import ScalarHead, ScalarModel
    from tests.models.tiny import tiny_config

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = tiny_config("llama", len(tokenizer), hidden_size=16, intermediate_size=16, max_position_embeddings=64)
    for key in ("pad", "eos", "bos"):
        setattr(config, f"{key}_token_id", getattr(tokenizer, f"{key}_token_id"))
    head = ScalarHead(16)
    torch.nn.init.normal_(head.weight)
    ScalarModel(AutoModelForCausalLM.from_config(config).model, head).save_pretrained(tmp_path, tokenizer)
    judge = RewardJudge(ModelReward(str(tmp_path)), tie_margin=0.0)
    judge.setup()
    found = pairs(["lions eat meat .", "boats"], ["robins", "drugs are sold ."], prompt="what do robins eat ?")
    verdicts = judge.judge(found)
    scorer = load_scorer(str(tmp_path))
    for pair, verdict in zip(found, verdicts, strict=True):
        ids = [scorer.encode(x.turns, x.text)[0] for x in (pair.a, pair.b)]
        assert verdict.scores == pytest.approx(tuple(scorer.score_ids(ids)), abs=1e-5)
        assert verdict.outcome == ("win" if verdict.scores[0] > verdict.scores[1] else "lose")


def test_a_saved_score_needs_no_model():
    judge = ScoreJudge("gold", tie_margin=0.08)
    (win,), (tie,) = pairs(["a"], ["b"]), pairs(["a"], ["b"], gold=0.5)
    assert judge.compare("", *(answers(["x"], gold=g)[0] for g in (0.5, 0.6))).outcome == "lose"
    assert judge.judge([tie]) == [Verdict(outcome="tie", scores=(0.5, 0.5))]
    with pytest.raises(ValueError, match=r"a.jsonl, row 1: `score` \(gold\) is not among its numbers: row, sample"):
        judge.judge([win])
    with pytest.raises(ValueError, match="nan, not a number"):
        judge.judge(pairs(["a"], ["b"], gold=math.nan))


def write_report(path, bins):
    rows = [{"low": low, "high": low + 0.1, "accuracy": {"low": a, "mean": 0.7, "high": 0.9}} for low, a in bins]
    path.write_text(json.dumps({"calibration": {"bins": rows}}))
    return str(path)


def test_the_margin_is_where_a_reward_model_begins_to_be_better_than_a_coin(tmp_path, tokenizer_path):
    report = write_report(tmp_path / "r.json", [(0.5, 0.44), (0.6, 0.52), (0.7, 0.49), (0.8, 0.6), (0.9, 0.8)])
    assert margin_of(report) == pytest.approx(math.log(0.8 / 0.2))
    assert RewardJudge(Words(), calibration=report, tokenizer=tokenizer_path).tie_margin == margin_of(report)
    assert margin_of(write_report(tmp_path / "s.json", [(0.5, 0.6), (0.9, 0.8)])) == 0.0
    with pytest.raises(ValueError, match="better than a coin"):
        margin_of(write_report(tmp_path / "c.json", [(0.5, 0.6), (0.9, None)]))
    (tmp_path / "n.json").write_text("{}")
    with pytest.raises(ValueError, match=r"n.json.* is no reward_report.json"):
        margin_of(tmp_path / "n.json")


def test_what_a_tie_is_must_be_said(tokenizer_path):
    for options in ({}, {"tie_margin": 0.1, "calibration": "x.json"}):
        with pytest.raises(ValueError, match="Give `tie_margin` or `calibration`"):
            RewardJudge(Words(), tokenizer=tokenizer_path, **options)
    for make in (
        lambda m: RewardJudge(Words(), tokenizer="x", tie_margin=m),
        lambda m: ScoreJudge("gold", tie_margin=m),
    ):
        for margin in (-0.1, math.nan):
            with pytest.raises(ValueError, match=r"`tie_margin` \(.*\) must not be negative"):
                make(margin)
    with pytest.raises(ValueError, match="`tokenizer` must be named: Words brings none"):
        RewardJudge(Words(), tie_margin=0.1)
    with pytest.raises(ValueError, match="`batch_size`"):
        RewardJudge(Words(), tie_margin=0.1, tokenizer="x", batch_size=0)


def test_a_judge_of_ones_own_is_one_method():
    class Shorter(Judge):
        name = "shorter"

        def compare(self, prompt, a, b):
            return Verdict(outcome="win" if len(a.text) < len(b.text) else "lose", reason=f"for {prompt}")

    (verdict,) = Shorter().judge(pairs(["x"], ["yy"]))
    assert (verdict.outcome, verdict.reason) == ("win", "for question 0")
