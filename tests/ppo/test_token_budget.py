"""Sizes of an iteration: what is refused, and what a forward pass may hold where nothing is said."""

import pytest
import torch

from lit_rlhf.ppo.minibatch import plan_updates
from lit_rlhf.ppo.plan import BatchingConfig
from lit_rlhf.types import Rollout


def rollout(rows: int, length: int, response: int) -> Rollout:
    ids = torch.ones(rows, length + response, dtype=torch.long)
    return Rollout(
        prompt_ids=ids[:, :length],
        prompt_mask=ids[:, :length].bool(),
        records=({},) * rows,
        input_ids=ids,
        attention_mask=ids.bool(),
        response_mask=ids[:, length:].bool(),
        ended=torch.ones(rows, dtype=torch.bool),
    )


@pytest.mark.parametrize(
    ("configured", "device", "budget"),
    [(None, "cpu", 768), (None, "cuda:1", 8192), (None, "meta", 8192), (300, "cpu", 300), (300, "cuda", 300)],
)
def test_token_budget(configured, device, budget):
    assert BatchingConfig(micro_batch_tokens=configured).token_budget(device) == budget


def test_the_default_budget_of_the_device_cuts_the_micro_batches():
    config = BatchingConfig(rollout_batch_size=32, minibatch_size=16)
    plan = plan_updates(rollout(32, 100, 28), config, iteration=0)
    assert [[len(rows) for rows in minibatch] for minibatch in plan] == [[6, 6, 4], [6, 6, 4]]


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"`micro_batch_tokens` \(0\) must be at least 1"):
        BatchingConfig(micro_batch_tokens=0)
