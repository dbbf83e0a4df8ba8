from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given

from lit_rlhf.functional import (
    discounted_returns,
    explained_variance,
    explained_variance_from_sums,
    explained_variance_sums,
    length_stats,
    perplexity,
)

from .cases import close, finite, garbage, kept_floats, like, masks, response_mask, scales, seeds, spoil


@given(masks, seeds)
def test_explained_variance_term_by_term(mask, seed):
    returns = like(mask, seed) + 5.0
    values = returns + 0.5 * like(mask, seed + 1) - 2.0
    kept = kept_floats(mask, values, returns)
    if len(kept) < 2:
        assert explained_variance(values, returns, mask) == 0.0
        return
    residual = statistics.pvariance([r - v for v, r in kept])
    want = 1 - residual / statistics.pvariance([r for _, r in kept])
    close(explained_variance(values, returns, mask), want, rtol=1e-4, atol=1e-4)


def test_explained_variance_of_known_critics():
    mask = response_mask([5, 3], 5)
    returns = like(mask, 0)
    assert explained_variance(returns, returns, mask) == 1.0
    close(explained_variance(returns + 7.0, returns, mask), 1.0)
    close(explained_variance(torch.full_like(returns, 3.0), returns, mask), 0.0)
    close(explained_variance(-returns, returns, mask), -3.0)


def test_explained_variance_of_constant_returns_is_zero():
    mask = response_mask([5, 3], 5)
    constant = discounted_returns(torch.zeros(2, 5), mask) + 0.1
    assert explained_variance(like(mask, 0), constant, mask) == 0.0
    assert explained_variance(constant, constant, mask) == 0.0
    assert explained_variance(constant, constant, torch.zeros_like(mask)) == 0.0


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 123.456, -7.7e4])
def test_explained_variance_does_not_take_rounding_for_variance(constant):
    for rows in (7, 31, 57):
        mask = torch.ones(rows, 11, dtype=torch.bool)
        returns = torch.full((rows, 11), constant)
        assert explained_variance(like(mask, 0), returns, mask) == 0.0


def test_explained_variance_sums_add_over_micro_batches():
    mask = response_mask([5, 3, 0, 1], 5)
    values, returns = like(mask, 0), like(mask, 1) + 100.0
    sums = sum(explained_variance_sums(values[i : i + 1], returns[i : i + 1], mask[i : i + 1]) for i in range(4))
    close(explained_variance_from_sums(sums), explained_variance(values, returns, mask))
    assert not explained_variance_sums(values.requires_grad_(), returns, mask).requires_grad


@given(masks, seeds, scales)
def test_explained_variance_is_finite(mask, seed, scale):
    assert finite(explained_variance(like(mask, seed, scale), like(mask, seed + 1, scale), mask))


@given(masks, seeds)
def test_perplexity_term_by_term(mask, seed):
    logprobs = -like(mask, seed).abs()
    kept = [x for (x,) in kept_floats(mask, logprobs)]
    close(perplexity(logprobs, mask), math.exp(-sum(kept) / len(kept)) if kept else 1.0)


def test_perplexity_of_a_uniform_choice_is_the_number_of_words():
    mask = response_mask([4, 2], 4)
    close(perplexity(torch.full((2, 4), -math.log(50.0)), mask), 50.0)
    assert not perplexity(torch.zeros(2, 4, requires_grad=True), mask).requires_grad


@garbage
def test_garbage_outside_the_mask_changes_nothing(junk):
    mask = response_mask([4, 2, 0], 4)
    a, b = like(mask, 0), like(mask, 1)
    dirty_a, dirty_b = spoil(a, mask, junk), spoil(b, mask, junk)
    assert torch.equal(explained_variance(a, b, mask), explained_variance(dirty_a, dirty_b, mask))
    assert torch.equal(perplexity(a, mask), perplexity(dirty_a, mask))


def test_length_stats():
    stats = length_stats(response_mask([4, 1, 0, 3], 6))
    close(torch.stack([stats.mean, stats.std]), [2.0, statistics.pstdev([4, 1, 0, 3])])
    assert (stats.min.item(), stats.max.item()) == (0, 4)
    one = length_stats(response_mask([3], 6))
    assert (one.mean.item(), one.std.item()) == (3.0, 0.0)


def test_length_stats_refuses():
    with pytest.raises(ValueError, match=r"`mask` must be bool \(B, T\) with B at least 1, got torch.int64"):
        length_stats(torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        length_stats(torch.ones(0, 3, dtype=torch.bool))
