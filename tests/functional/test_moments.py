from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.functional import RunningMoments, masked_moments, shape_scores

from .cases import normal, seeds


def numpy_moments(x: np.ndarray) -> tuple[float, float, float]:
    return float(x.size), float(x.mean()), float(((x - x.mean()) ** 2).sum())


def same(got: RunningMoments, want: tuple[float, float, float]) -> None:
    assert (got.count, got.mean, got.m2) == pytest.approx(want, rel=1e-9, abs=1e-9)


@given(seeds, st.lists(st.integers(0, 7), min_size=1, max_size=6), st.floats(-1e3, 1e3))
def test_batches_equal_numpy_on_the_whole(seed, sizes, offset):
    batches = [normal(n, seed=seed + i) + offset for i, n in enumerate(sizes)]
    moments = RunningMoments()
    for batch in batches:
        moments = moments.update_from(batch)
    whole = torch.cat(batches).double().numpy()
    if whole.size:
        same(moments, numpy_moments(whole))
    if whole.size > 1:
        assert moments.std == pytest.approx(np.std(whole, ddof=1))


@given(seeds, st.permutations(range(5)))
def test_any_order_and_any_grouping(seed, order):
    batches = [normal(i + 1, seed=seed + i, scale=10.0**i).double() for i in range(5)]
    one_by_one = RunningMoments()
    for i in order:
        one_by_one = one_by_one.update(*numpy_moments(batches[i].numpy()))
    left, right = RunningMoments(), RunningMoments()
    for i in order[:2]:
        left = left.update_from(batches[i])
    for i in order[2:]:
        right = right.update_from(batches[i])
    merged = left.update(right.count, right.mean, right.m2)
    want = numpy_moments(torch.cat(batches).numpy())
    same(one_by_one, want)
    same(merged, want)


def test_masked_moments_are_what_it_takes():
    x, mask = normal(3, 4, seed=0), torch.tensor([[True, True, False, True]] * 3)
    triple = [float(v) for v in masked_moments(x, mask)]
    same(RunningMoments().update(*triple), numpy_moments(x[mask].double().numpy()))


def test_update_returns_new_moments():
    first = RunningMoments().update_from(torch.tensor([1.0, 3.0]))
    first.update_from(torch.tensor([100.0]))
    assert first == RunningMoments(count=2.0, mean=2.0, m2=2.0)
    assert first.std == pytest.approx(math.sqrt(2.0))


@pytest.mark.parametrize(
    "scores", [[], [7.0], [7.0, 7.0], [0.1] * 9, [1e30] * 3, [1000.0, 1000.0 + 1e-5]], ids=lambda s: str(s)[:12]
)
def test_std_is_one_where_there_is_no_spread(scores):
    moments = RunningMoments().update_from(torch.tensor(scores, dtype=torch.float64))
    assert moments.std == 1.0


@given(seeds, st.sampled_from([1e-30, 1.0, 1e15, 1e30]))
def test_extreme_scores_stay_finite(seed, scale):
    scores = normal(5, seed=seed, scale=scale)
    moments = RunningMoments().update_from(scores)
    shaped = shape_scores(scores, moments=moments, normalize=True)
    assert math.isfinite(moments.m2)
    assert shaped.abs().max() <= 2.0  # (n - 1) / sqrt(n) bounds a standardized score


def test_state_goes_round_as_plain_floats():
    moments = RunningMoments().update_from(normal(5, seed=0))
    state = moments.state_dict()
    assert RunningMoments.from_state(state) == moments
    assert all(type(v) is float for v in state.values())
    assert list(state) == ["count", "mean", "m2"]


def test_precision_survives_a_large_offset_and_many_batches():
    moments = RunningMoments()
    for i in range(200):
        moments = moments.update_from(normal(16, seed=i).double() + 1e6)
    whole = torch.cat([normal(16, seed=i).double() + 1e6 for i in range(200)])
    assert moments.std == pytest.approx(float(whole.std()), rel=1e-9)


@pytest.mark.parametrize("bad", [(1.0, math.nan, 0.0), (math.inf, 0.0, 0.0), (-1.0, 0.0, 0.0), (1.0, 0.0, -1.0)])
def test_refuses_impossible_numbers(bad):
    with pytest.raises(ValueError, match="must be finite, `count` and `m2` not negative"):
        RunningMoments().update(*bad)
    with pytest.raises(ValueError, match="must be finite"):
        RunningMoments().update_from(torch.tensor([1.0, math.nan]))
