from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from lit_rlhf.functional import keep, masked_moments, masked_whiten

from .cases import close, finite, garbage, kept_floats, like, masks, normal, response_mask, scales, seeds, spoil

MASK = torch.tensor([[True, False, True, True], [False, False, False, False], [True, False, False, False]])


def test_keep_by_hand():
    close(keep(torch.arange(1.0, 13.0).view(3, 4), MASK), [[1, 0, 3, 4], [0, 0, 0, 0], [9, 0, 0, 0]])
    assert keep(torch.ones(3, 4, dtype=torch.float64), MASK).dtype == torch.float64


@given(masks, seeds)
def test_moments_term_by_term(mask, seed):
    x = like(mask, seed) + 3.0
    kept = [v for (v,) in kept_floats(mask, x)]
    mean = sum(kept) / max(1, len(kept))
    m2 = sum((v - mean) ** 2 for v in kept)
    for got, want in zip(masked_moments(x, mask), (len(kept), mean, m2), strict=True):
        close(got, want, rtol=1e-12, atol=1e-12)
    close(keep(x, mask).sum(), sum(kept))


@given(masks, seeds)
def test_whiten_term_by_term(mask, seed):
    x = like(mask, seed) + 3.0
    kept = [v for (v,) in kept_floats(mask, x)]
    if not kept:
        return
    mean = sum(kept) / len(kept)
    std = math.sqrt(sum((v - mean) ** 2 for v in kept) / len(kept) + 1e-8)
    close(masked_whiten(x, mask)[mask], [(v - mean) / std for v in kept])
    close(masked_whiten(x, mask, shift_mean=False)[mask], [(v - mean) / std + mean for v in kept])
    assert torch.all(masked_whiten(x, mask, shift_mean=False)[~mask] == 0)


@given(masks, seeds, scales)
def test_whitened_is_finite_centered_and_bounded(mask, seed, scale):
    white = masked_whiten(like(mask, seed, scale), mask)
    assert finite(white)
    assert white.abs().max() <= math.sqrt(mask.numel())
    close(masked_moments(white, mask)[1], 0.0, atol=1e-5)


def test_constants_whiten_to_zero_exactly():
    assert torch.all(masked_whiten(torch.full((3, 4), 0.1), MASK) == 0)
    assert torch.all(masked_whiten(torch.full((3, 4), 1e30), MASK) == 0)


def test_whiten_with_the_moments_of_the_whole_batch_is_the_whole_batch_whitened():
    x, mask = normal(6, 5, seed=0), response_mask([5, 1, 3, 0, 2, 4], 5)
    count, mean, m2 = masked_moments(x, mask)
    parts = [masked_whiten(x[i : i + 2], mask[i : i + 2], moments=(mean, m2 / count)) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), masked_whiten(x, mask))
    close(masked_whiten(x, mask, moments=(mean.item(), (m2 / count).item())), masked_whiten(x, mask))
    assert not torch.allclose(torch.cat([masked_whiten(x[i : i + 2], mask[i : i + 2]) for i in (0, 2, 4)]), parts[0][0])


@garbage
@pytest.mark.parametrize("function", [keep, masked_whiten, masked_moments])
def test_garbage_outside_the_mask_changes_nothing(function, junk):
    clean = normal(3, 4, seed=1).where(MASK, torch.tensor(0.0)).requires_grad_()
    dirty = spoil(clean, MASK, junk).requires_grad_()
    outs = [function(x, MASK) for x in (clean, dirty)]
    outs = [torch.stack(o) if isinstance(o, tuple) else o for o in outs]
    assert torch.equal(*outs)
    grads = [
        torch.autograd.grad((o * torch.arange(1.0, o.numel() + 1).view(o.shape)).sum(), x)[0]
        for o, x in zip(outs, (clean, dirty), strict=True)
    ]
    assert torch.equal(*grads)
    assert torch.all(grads[1][~MASK] == 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_low_precision_is_summed_in_fp32(dtype):
    x = torch.ones(1, 5000).to(dtype)
    total = keep(x, torch.ones(1, 5000, dtype=torch.bool)).sum()
    assert total.dtype == torch.float32
    assert total == 5000


def test_refuses_masks_of_other_types_and_shapes():
    x = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"`mask` must be bool with True = keep, got torch.float32"):
        keep(x, MASK.float())
    with pytest.raises(ValueError, match=r"`mask` \(4,\) must have the shape of the values \(3, 4\)"):
        keep(x, MASK[0])
