from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given

from lit_rlhf.functional import (
    explained_variance_from_sums,
    explained_variance_sums,
    perplexity,
    shape_statistics,
)

from .cases import close, finite, garbage, kept_floats, like, masks, response_mask, scales, seeds, spoil


def explained_variance(*columns: torch.Tensor) -> torch.Tensor:
    return explained_variance_from_sums(explained_variance_sums(*columns)).float()


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
    constant = torch.full((2, 5), 0.1)
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


def test_perplexity_of_a_uniform_choice_is_the_number_of_words():
    assert perplexity(math.log(50.0)) == pytest.approx(50.0)
    assert perplexity(0.0) == 1.0
    probabilities = [0.5, 0.1, 0.9]
    mean_nll = -sum(map(math.log, probabilities)) / 3
    assert perplexity(mean_nll) == pytest.approx(math.prod(probabilities) ** (-1 / 3))


def test_perplexity_is_infinite_exactly_where_float64_holds_it_no_more():
    assert perplexity(709.78) < math.inf
    assert perplexity(709.79) == perplexity(1e30) == perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))


@garbage
def test_garbage_outside_the_mask_changes_nothing(junk):
    mask = response_mask([4, 2, 0], 4)
    a, b = like(mask, 0), like(mask, 1)
    dirty_a, dirty_b = spoil(a, mask, junk), spoil(b, mask, junk)
    assert torch.equal(explained_variance(a, b, mask), explained_variance(dirty_a, dirty_b, mask))


def test_shape_statistics_against_plain_sums_and_scipy():
    stats = pytest.importorskip("scipy.stats")
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)).exp()
    got = shape_statistics(x)
    assert got["mean"] == pytest.approx(math.fsum(x.tolist()) / 500)
    assert got["std"] == pytest.approx(statistics.pstdev(x.tolist()))
    assert got["skew"] == pytest.approx(stats.skew(x.double().numpy()), rel=1e-9)
    assert got["kurtosis"] == pytest.approx(stats.kurtosis(x.double().numpy()), rel=1e-9)
    ordered = sorted(x.tolist())
    median = (ordered[249] + ordered[250]) / 2
    tail = (sum(ordered[-25:]) / 25 - median) / (median - sum(ordered[:250]) / 250)
    assert got["upper_tail"] == pytest.approx(tail, rel=1e-6)


def test_upper_tail_sees_a_tail_and_neither_shift_nor_scale():
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    base = shape_statistics(x)["upper_tail"]
    assert base == pytest.approx(2.58, abs=0.1)
    assert shape_statistics(3 * x + 5)["upper_tail"] == pytest.approx(base, rel=1e-4)
    long = torch.where(x > 1.5, x * 3, x)
    assert shape_statistics(long)["upper_tail"] > 1.8 * base


def test_shape_of_a_constant_sample_is_nan_not_an_error():
    got = shape_statistics(torch.ones(4))
    assert got["std"] == 0.0
    assert math.isnan(got["upper_tail"])
    assert math.isnan(got["skew"])
