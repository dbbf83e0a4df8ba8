"""The check after a sync: what passes, what is refused, and on which tokens."""

from __future__ import annotations

import math

import pytest
import torch

from lit_rlhf.rollout.sync_check import checked_gap, policy_logprobs, spread
from tests.models.tiny import tiny_config


@pytest.fixture(scope="module")
def policy():
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config("llama", 40), dtype=torch.float32).requires_grad_(False)


def test_log_probabilities_are_those_of_each_token_given_those_before(policy) -> None:
    ids = [5, 9, 3, 7]
    policy.train()
    found = policy_logprobs(policy, ids)
    assert policy.training
    policy.eval()
    for place in range(1, len(ids)):
        logits = policy(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
        expected = logits[ids[place]] - logits.exp().sum().log()
        assert found[place - 1].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_gap_is_the_mean_distance(policy) -> None:
    off = torch.linspace(-0.02, 0.04, 31)
    gap = checked_gap(policy, lambda ids: policy_logprobs(policy, ids) + off, limit=0.1, longest=100)
    assert gap == pytest.approx(sum(abs(x) for x in off.tolist()) / 31, rel=1e-3)


@pytest.mark.parametrize("off", [0.2, -0.2, math.nan, math.inf])
def test_a_larger_one_is_refused(policy, off) -> None:
    with pytest.raises(RuntimeError, match=r"nats per token .*`max_gap` 0.1.* LlamaForCausalLM") as error:
        checked_gap(policy, lambda ids: policy_logprobs(policy, ids) + off, limit=0.1, longest=100)
    assert "\n" not in str(error.value)


def test_no_more_tokens_than_the_engine_takes(policy) -> None:
    seen = []

    def engine(ids):
        seen.append(len(ids))
        return policy_logprobs(policy, ids)

    checked_gap(policy, engine, limit=1.0, longest=9)
    checked_gap(policy, engine, limit=1.0, longest=900)
    assert seen == [8, 32]


@pytest.mark.parametrize(("vocabulary", "count"), [(5, 32), (96, 32), (32_000, 32), (96, 2)])
def test_the_tokens_of_the_check_are_in_the_vocabulary_and_from_all_of_it(vocabulary, count) -> None:
    ids = spread(vocabulary, count)
    assert len(ids) == count
    assert set(ids) <= set(range(vocabulary))
    assert max(ids) >= vocabulary - max(1, vocabulary // count) - 1 or vocabulary < count
