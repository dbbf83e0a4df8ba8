from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from lit_rlhf.functional import RunningMoments, penalize_missing_eos, shape_scores, token_rewards

from .cases import close, finite, garbage, like, masks, normal, response_mask, scales, seeds, spoil

MOMENTS = RunningMoments(count=5.0, mean=2.0, m2=64.0)  # std 4


def test_shapes_by_hand():
    scores = torch.tensor([-2.0, 2.0, 12.0])
    close(shape_scores(scores, moments=MOMENTS), [-2, 2, 12])
    close(shape_scores(scores, moments=MOMENTS, normalize=True), [-1, 0, 2.5])
    close(shape_scores(scores, moments=MOMENTS, scale=True), [-0.5, 0.5, 3])
    close(shape_scores(scores, moments=MOMENTS, normalize=True, scale=True), [-1, 0, 2.5])
    close(shape_scores(scores, moments=MOMENTS, normalize=True, clip=0.8), [-0.8, 0, 0.8])
    close(shape_scores(scores, moments=MOMENTS, clip=10.0), [-2, 2, 10])


def test_first_batch_normalized_by_moments_that_include_it():
    scores = normal(8, seed=0) * 3 + 5
    shaped = shape_scores(scores, moments=RunningMoments().update_from(scores), normalize=True)
    floats = [float(s) for s in scores]
    mean = sum(floats) / 8
    std = math.sqrt(sum((s - mean) ** 2 for s in floats) / 7)
    close(shaped, [(s - mean) / std for s in floats])


def test_missing_eos():
    scores, ended = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([True, False, True])
    close(penalize_missing_eos(scores, ended), [1, 2, 3])
    close(penalize_missing_eos(scores, ended, penalty=1.5), [1, 0.5, 3])
    close(penalize_missing_eos(scores, ended, replacement=-1.0), [1, -1, 3])
    close(penalize_missing_eos(scores, ended, replacement=0.0), [1, 0, 3])
    close(scores, [1, 2, 3])


@given(masks, seeds)
def test_token_rewards_term_by_term(mask, seed):
    logprobs, ref, process = (like(mask, seed + i) for i in range(3))
    scores = normal(mask.size(0), seed=seed + 3)
    got = token_rewards(scores, logprobs, ref, mask, kl_coef=0.3, token_scores=process)
    without = token_rewards(scores, logprobs, ref, mask, kl_coef=0.3)
    for b in range(mask.size(0)):
        kept = [t for t in range(mask.size(1)) if mask[b, t]]
        for t in range(mask.size(1)):
            want = 0.0
            if t in kept:
                want = -0.3 * (float(logprobs[b, t]) - float(ref[b, t]))
                if t == kept[-1]:
                    want += float(scores[b])
            close(without[b, t], want)
            close(got[b, t], want + (float(process[b, t]) if t in kept else 0.0))


def test_rewards_of_a_row_sum_to_score_minus_kl():
    mask = response_mask([4, 1, 0, 3], 4)
    logprobs, ref, scores = like(mask, 0), like(mask, 1), normal(4, seed=2)
    total = token_rewards(scores, logprobs, ref, mask, kl_coef=0.5).sum(1)
    kl = ((logprobs - ref) * mask).sum(1)
    close(total, (scores - 0.5 * kl) * mask.any(1))


def test_a_policy_likelier_than_the_reference_pays():
    mask = torch.ones(1, 2, dtype=torch.bool)
    rewards = token_rewards(torch.zeros(1), torch.full((1, 2), -0.1), torch.full((1, 2), -2.0), mask, kl_coef=1.0)
    assert torch.all(rewards < 0)


@garbage
def test_garbage_outside_the_mask_changes_nothing(junk):
    mask = response_mask([4, 1, 0, 3], 4)
    a, b, c, scores = like(mask, 0), like(mask, 1), like(mask, 2), normal(4, seed=3)
    clean = token_rewards(scores, a, b, mask, kl_coef=0.1, token_scores=c)
    a, b, c = (spoil(x, mask, junk) for x in (a, b, c))
    scores[2] = junk  # the row without a token
    assert torch.equal(token_rewards(scores, a, b, mask, kl_coef=0.1, token_scores=c), clean)
    assert torch.all(clean[~mask] == 0)


@given(masks, seeds, scales)
def test_finite_at_extreme_scores(mask, seed, scale):
    scores = normal(mask.size(0), seed=seed, scale=scale)
    assert finite(token_rewards(scores, like(mask, seed), like(mask, seed + 1), mask, kl_coef=0.1))


def test_no_columns_no_rewards():
    empty = torch.zeros(2, 0)
    assert token_rewards(torch.ones(2), empty, empty, empty.bool(), kl_coef=0.1).shape == (2, 0)


def test_fp32_out():
    ones = torch.ones(2, 3, dtype=torch.bfloat16)
    scores = torch.ones(2, dtype=torch.bfloat16)
    assert token_rewards(scores, ones, ones, ones.bool(), kl_coef=0.1).dtype == torch.float32
    assert shape_scores(scores, moments=MOMENTS).dtype == torch.float32
    assert penalize_missing_eos(scores, scores.bool()).dtype == torch.float32


def test_refusals():
    scores, ended = torch.zeros(2), torch.zeros(2, dtype=torch.bool)
    grid, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"`clip` \(0.0\) must be positive, or None"):
        shape_scores(scores, moments=MOMENTS, clip=0.0)
    with pytest.raises(ValueError, match=r"`penalty` \(1.0\) or `replacement` \(2.0\), not both"):
        penalize_missing_eos(scores, ended, penalty=1.0, replacement=2.0)
    with pytest.raises(ValueError, match=r"`penalty` \(-1.0\) is subtracted"):
        penalize_missing_eos(scores, ended, penalty=-1.0)
    with pytest.raises(ValueError, match=r"`ended` must be bool \(2,\), got torch.float32"):
        penalize_missing_eos(scores, ended.float())
    with pytest.raises(ValueError, match=r"`kl_coef` \(-0.1\) must not be negative"):
        token_rewards(scores, grid, grid, mask, kl_coef=-0.1)
    with pytest.raises(ValueError, match=r"`scores` \(3,\) must be \(B,\) and `mask` \(2, 3\) \(B, T\)"):
        token_rewards(torch.zeros(3), grid, grid, mask, kl_coef=0.1)
