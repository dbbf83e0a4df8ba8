"""Evaluation on prompts without a module or a trainer: the part that PPO, SFT and a module of yours share."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from lit_rlhf.datamodules.prompts import EncodedPrompt, prompt_batch
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.tokenizer import load_tokenizer
from lit_rlhf.modules.prompt_evaluator import PromptEvaluator
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rollout.requests import generation_request, reward_request
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import RewardOutput, Rollout

SAMPLING = SamplingConfig(max_response_length=6)


class Length(Reward):
    def score(self, request: Any) -> RewardOutput:
        return RewardOutput(scores=request.rollout.response_lengths.float())


class Broken(Reward):
    def score(self, request: Any) -> RewardOutput:
        return RewardOutput(scores=torch.full((len(request.prompts),), torch.nan))


@pytest.fixture(scope="module")
def parts(world):
    policy, tokenizer = load_causal_lm(world / "policy"), load_tokenizer(world / "policy")
    other = load_causal_lm(world / "policy")
    for parameter in other.parameters():
        parameter.data.mul_(0.5)
    prompts = [EncodedPrompt(ids=tuple(tokenizer("abc"[:n]).input_ids), record={"n": n}) for n in (1, 2, 3)]
    return policy, other, tokenizer, prompt_batch(prompts, tokenizer.pad_token_id)


def answered(evaluator: PromptEvaluator, parts) -> Rollout:
    policy, _, tokenizer, prompts = parts
    engine = TransformersEngine()
    engine.sync(policy)
    uniforms = evaluator.uniforms(prompts)
    return engine.generate(generation_request(policy, tokenizer, prompts, uniforms, evaluator.sampling))


def test_rows_hold_what_models_and_rewards_say(parts, tmp_path) -> None:
    policy, other, tokenizer, _ = parts
    evaluator = PromptEvaluator(sampling=SAMPLING, rewards={"score": Length(), "again": Length()})
    evaluator.setup(device=torch.device("cpu"), tokenizer=tokenizer)
    rollout = answered(evaluator, parts)
    scored, rows = evaluator.score(rollout, reward_request(tokenizer, rollout), policy=policy, reference=other)
    for i, row in enumerate(rows):
        ids, response = rollout.input_ids[i][rollout.attention_mask[i]][None], rollout.response_lengths[i]
        for key, model in (("logprob", policy), ("ref_logprob", other)):
            said = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
            expected = said.gather(1, ids[0, 1:, None])[-response:].sum()
            assert row[key] == pytest.approx(float(expected), abs=1e-4)
        assert row["score"] == row["again"] == row["tokens"] == response
        assert row["record"] == {"n": i + 1}
    assert torch.equal(scored.scores, rollout.response_lengths.float())
    evaluator.start()
    evaluator.add(rows[1:])
    evaluator.add(rows[:1])
    means = evaluator.finish(tmp_path / "deep", "val.jsonl")
    assert means["score"] == pytest.approx(sum(row["tokens"] for row in rows) / 3)
    assert means["kl_sequence"] == pytest.approx(sum(r["logprob"] - r["ref_logprob"] for r in rows) / 3)
    assert [json.loads(line)["tokens"] for line in (tmp_path / "deep" / "val.jsonl").open()] == [
        row["tokens"] for row in rows[1:] + rows[:1]
    ]
    assert evaluator.finish(tmp_path, "empty.jsonl") == {}
    assert not (tmp_path / "empty.jsonl").exists()


def test_without_reference_or_rewards_there_are_texts_and_log_probabilities(parts) -> None:
    policy, _, tokenizer, _ = parts
    evaluator = PromptEvaluator(sampling=SAMPLING)
    evaluator.setup(device=torch.device("cpu"), tokenizer=tokenizer)
    rollout = answered(evaluator, parts)
    scored, rows = evaluator.score(rollout, reward_request(tokenizer, rollout), policy=policy, reference=None)
    assert scored.ref_logprobs is None
    assert not scored.scores.any()
    assert "logprob" in rows[0]
    assert not {"ref_logprob", "score"} & rows[0].keys()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_problem_of_a_batch_is_raised_at_once_or_with_several_ranks_at_the_end(parts, ranks, monkeypatch) -> None:
    policy, _, tokenizer, _ = parts
    evaluator = PromptEvaluator(sampling=SAMPLING, rewards={"score": Broken()})
    evaluator.setup(device=torch.device("cpu"), tokenizer=tokenizer)
    rollout = answered(evaluator, parts)
    evaluator.start()
    monkeypatch.setattr("lit_rlhf.modules.prompt_evaluator.is_distributed", lambda: ranks > 1)

    def batch() -> list:
        return evaluator.score(rollout, reward_request(tokenizer, rollout), policy=policy, reference=None)[1]

    if ranks == 1:
        with pytest.raises(ValueError, match="gave nan for prompt"):
            evaluator.attempt(batch)
        return
    assert evaluator.attempt(batch) == []
    assert evaluator.attempt(lambda: [{"later": "batches are skipped"}]) == []
    with pytest.raises(ValueError, match="gave nan for prompt"):
        evaluator.finish(None, "")
    assert evaluator.attempt(lambda: [{"a": "new evaluation"}]) == [{"a": "new evaluation"}]
