from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lit_rlhf.functional import (
    discounted_returns,
    generalized_advantage_estimate,
    group_normalized,
    leave_one_out,
    token_rewards,
)

from .cases import close, finite, garbage, like, masks, normal, response_mask, scales, seeds, spoil

unit = st.floats(0.0, 1.0)


def reference(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Forward sum of (gamma lambda)^l delta_{t+l}, as the definition reads; not the backward recursion."""
    shape = mask.shape
    advantages = [[0.0] * shape[1] for _ in range(shape[0])]
    returns = [[0.0] * shape[1] for _ in range(shape[0])]
    for b in range(shape[0]):
        kept = [t for t in range(shape[1]) if mask[b, t]]
        r = [float(rewards[b, t]) for t in kept]
        v = [float(values[b, t]) for t in kept] + [0.0]
        delta = [r[i] + gamma * v[i + 1] - v[i] for i in range(len(kept))]
        for i, t in enumerate(kept):
            advantages[b][t] = sum((gamma * lam) ** (j - i) * delta[j] for j in range(i, len(kept)))
            returns[b][t] = advantages[b][t] + v[i]
    return advantages, returns


def test_gae_golden():
    mask = response_mask([3], 4)
    rewards, values = torch.tensor([[0.0, 1.0, 2.0, 9.0]]), torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    advantages, returns = generalized_advantage_estimate(rewards, values, mask, gamma=0.5, gae_lambda=0.5)
    # deltas 0 + 1 - 1 = 0, 1 + 1.5 - 2 = 0.5, 2 - 3 = -1
    close(advantages, [[0.0 + 0.25 * 0.25, 0.5 - 0.25, -1.0, 0.0]])
    close(returns, [[1.0625, 2.25, 2.0, 0.0]])


@given(masks, seeds, unit, unit)
def test_gae_term_by_term(mask, seed, gamma, lam):
    rewards, values = like(mask, seed), like(mask, seed + 1)
    advantages, returns = generalized_advantage_estimate(rewards, values, mask, gamma=gamma, gae_lambda=lam)
    want_advantages, want_returns = reference(rewards, values, mask, gamma, lam)
    close(advantages, want_advantages, rtol=1e-4, atol=1e-5)
    close(returns, want_returns, rtol=1e-4, atol=1e-5)


@given(masks, seeds, unit)
def test_lambda_one_is_the_discounted_return_less_the_value(mask, seed, gamma):
    rewards, values = like(mask, seed), like(mask, seed + 1)
    advantages, returns = generalized_advantage_estimate(rewards, values, mask, gamma=gamma, gae_lambda=1.0)
    plain = discounted_returns(rewards, mask, gamma=gamma)
    close(returns, plain, rtol=1e-4, atol=1e-5)
    close(advantages, plain - torch.where(mask, values, 0.0), rtol=1e-4, atol=1e-5)


@given(masks, seeds, unit)
def test_discounted_returns_term_by_term(mask, seed, gamma):
    rewards = like(mask, seed)
    got = discounted_returns(rewards, mask, gamma=gamma)
    for b in range(mask.size(0)):
        kept = [t for t in range(mask.size(1)) if mask[b, t]]
        for i, t in enumerate(kept):
            want = sum(gamma ** (j - i) * float(rewards[b, kept[j]]) for j in range(i, len(kept)))
            close(got[b, t], want, rtol=1e-4, atol=1e-5)
    assert torch.all(got[~mask] == 0)


def test_lambda_zero_is_the_one_step_error():
    mask = response_mask([3], 3)
    rewards, values = like(mask, 0), like(mask, 1)
    advantages, _ = generalized_advantage_estimate(rewards, values, mask, gamma=0.9, gae_lambda=0.0)
    following = torch.cat([values[:, 1:], torch.zeros(1, 1)], 1)
    close(advantages, rewards + 0.9 * following - values)


def test_a_perfect_critic_leaves_no_advantage():
    mask = response_mask([5, 2, 1], 5)
    rewards = like(mask, 0)
    values = discounted_returns(rewards, mask, gamma=0.9)
    advantages, returns = generalized_advantage_estimate(rewards, values, mask, gamma=0.9, gae_lambda=0.7)
    close(advantages, torch.zeros(3, 5))
    close(returns, values)


def test_score_reaches_every_token_of_its_own_row_alone():
    mask = response_mask([3, 2], 3)
    zeros = torch.zeros(2, 3)
    rewards = token_rewards(torch.tensor([5.0, 0.0]), zeros, zeros, mask, kl_coef=0.1)
    close(discounted_returns(rewards, mask), [[5, 5, 5], [0, 0, 0]])


@garbage
def test_gae_garbage_outside_the_mask_changes_nothing(junk):
    mask = torch.tensor([[True, True, False, True], [True, False, False, False], [False] * 4])
    rewards, values = like(mask, 0), like(mask, 1)
    clean = generalized_advantage_estimate(rewards, values, mask)
    dirty = generalized_advantage_estimate(spoil(rewards, mask, junk), spoil(values, mask, junk), mask)
    assert all(map(torch.equal, clean, dirty))
    assert all(torch.all(x[~mask] == 0) for x in clean)


def test_gae_padding_changes_nothing():
    mask = response_mask([3, 1], 3)
    rewards, values = like(mask, 0), like(mask, 1)
    narrow = generalized_advantage_estimate(rewards, values, mask)
    right = generalized_advantage_estimate(*(torch.nn.functional.pad(x, (0, 4)) for x in (rewards, values, mask)))
    left = generalized_advantage_estimate(*(torch.nn.functional.pad(x, (4, 0)) for x in (rewards, values, mask)))
    for n, r, ell in zip(narrow, right, left, strict=True):
        assert torch.equal(n, r[:, :3])
        assert torch.equal(n, ell[:, 4:])


@given(masks, seeds, scales)
def test_gae_finite_at_extremes(mask, seed, scale):
    rewards, values = like(mask, seed, scale), like(mask, seed + 1, scale)
    assert finite(*generalized_advantage_estimate(rewards, values, mask))


def test_gae_in_fp32_whatever_comes_in():
    x, mask = torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(2, 3, dtype=torch.bool)
    assert {y.dtype for y in generalized_advantage_estimate(x, x, mask)} == {torch.float32}
    assert discounted_returns(x, mask).dtype == torch.float32
    empty = torch.zeros(2, 0)
    assert generalized_advantage_estimate(empty, empty, empty.bool())[0].shape == (2, 0)


def test_defaults_are_the_papers_gamma_and_the_releases_lambda():
    mask = response_mask([4], 4)
    rewards, values = like(mask, 0), like(mask, 1)
    named = generalized_advantage_estimate(rewards, values, mask, gamma=1.0, gae_lambda=0.95)
    assert all(map(torch.equal, generalized_advantage_estimate(rewards, values, mask), named))


@given(seeds, st.integers(1, 4), st.integers(2, 5))
def test_groups_term_by_term(seed, count, size):
    scores = normal(count * size, seed=seed) * 2 + 1
    scaled, centered = (group_normalized(scores, size, scale_by_std=s) for s in (True, False))
    left_out = leave_one_out(scores, size)
    for i in range(count * size):
        group = [float(s) for s in scores[i // size * size : i // size * size + size]]
        mean = sum(group) / size
        std = math.sqrt(sum((s - mean) ** 2 for s in group) / (size - 1))
        me = float(scores[i])
        close(centered[i], me - mean)
        close(scaled[i], (me - mean) / (std + 1e-6))
        close(left_out[i], me - (sum(group) - me) / (size - 1))


@given(seeds, scales)
def test_groups_finite_and_centered(seed, scale):
    scores = normal(12, seed=seed, scale=scale)
    for out in (group_normalized(scores, 4), group_normalized(scores, 4, scale_by_std=False), leave_one_out(scores, 4)):
        assert out.dtype == torch.float32
        assert finite(out)
        close(out.view(3, 4).double().sum(1) / max(scale, 1.0), torch.zeros(3))


def test_equal_scores_of_a_group_teach_nothing():
    assert torch.all(group_normalized(torch.full((6,), 0.1), 3) == 0)
    assert torch.all(leave_one_out(torch.full((6,), 1e30), 3) == 0)


def test_refusals():
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`gamma` \(1.1\) must be in \[0, 1\]"):
        generalized_advantage_estimate(x, x, mask, gamma=1.1)
    with pytest.raises(ValueError, match=r"`gae_lambda` \(nan\) must be in \[0, 1\]"):
        generalized_advantage_estimate(x, x, mask, gae_lambda=math.nan)
    with pytest.raises(ValueError, match="must have the shape of the values"):
        generalized_advantage_estimate(x, x[:1], mask)
    for estimator in (group_normalized, leave_one_out):
        with pytest.raises(ValueError, match=r"`group_size` \(1\) must be at least 2"):
            estimator(torch.zeros(4), 1)
        with pytest.raises(ValueError, match=r"`scores` \(4,\) must be \(B,\) with B a multiple of `group_size` \(3\)"):
            estimator(torch.zeros(4), 3)
