"""The losses that YAML names, against their functions, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.functional import losses as f
from lit_rlhf.ppo.losses import ClippedSurrogate, ClippedValueLoss, KLPenaltySurrogate
from lit_rlhf.types import Experience


def experience(rows: int = 3, width: int = 4) -> Experience:
    g = torch.Generator().manual_seed(0)
    column = lambda: torch.randn(rows, width, generator=g)  # noqa: E731
    mask = torch.ones(rows, width, dtype=torch.bool)
    ids = torch.arange(rows * (width + 2)).view(rows, -1)
    return Experience(
        prompt_ids=ids[:, :2],
        prompt_mask=mask[:, :2],
        records=({},) * rows,
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        response_mask=mask,
        ended=mask[:, 0],
        old_logprobs=column(),
        ref_logprobs=column(),
        old_values=column(),
        scores=torch.zeros(rows),
        token_scores=column(),
        rewards=column(),
        advantages=column(),
        returns=column(),
    )


def test_each_is_its_function_per_token() -> None:
    taken = experience()
    new = (taken.old_logprobs + 0.3 * taken.rewards).requires_grad_()
    columns = (new, taken.old_logprobs, taken.advantages)
    loss, clipped = ClippedSurrogate(0.1)(*columns, taken)
    expected = f.clipped_policy_loss(*columns, clip_range=0.1)
    assert torch.equal(loss, expected[0])
    assert torch.equal(clipped, expected[1])
    assert clipped.any()
    loss, clipped = KLPenaltySurrogate(0.7)(*columns, taken)
    assert torch.equal(loss, f.kl_penalty_policy_loss(*columns, beta=0.7))
    assert not clipped.any()
    loss, clipped = ClippedValueLoss(0.1)(taken.rewards, taken)
    expected = f.value_loss(taken.rewards, taken.old_values, taken.returns, clip_range=0.1)
    assert torch.equal(loss, expected[0])
    assert torch.equal(clipped, expected[1])


@pytest.mark.parametrize("kind", [ClippedSurrogate, ClippedValueLoss])
def test_a_clip_range_that_clips_all_is_refused(kind) -> None:
    with pytest.raises(ValueError, match=r"`clip_range` \(0\) must be positive, or null for no clip"):
        kind(0)
    assert kind(None).clip_range is None


def test_a_negative_beta_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`beta` \(-1\) must not be negative"):
        KLPenaltySurrogate(-1)
