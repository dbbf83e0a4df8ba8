"""Importance weights of the sampler, against plain Python loops."""

from __future__ import annotations

import math

import pytest
import torch

from lit_rlhf.functional.sampler import effective_share, largest_gap, sampler_sums, truncated_weights

LENGTHS = [4, 1, 0, 3]


def columns(scale: float = 0.5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Policy, sampler, mask; garbage outside of it."""
    generator = torch.Generator().manual_seed(seed)
    policy, sampler = -torch.rand(2, 4, 4, generator=generator) * 3
    sampler = policy + (sampler + 1.5) * scale
    mask = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
    return policy.masked_fill(~mask, math.nan), sampler.masked_fill(~mask, math.inf), mask


@pytest.mark.parametrize("cap", [1.0, 1.3, 2.0, 1e9])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_term_by_term(level, cap) -> None:
    policy, sampler, mask = columns()
    found = truncated_weights(policy, sampler, mask, level=level, cap=cap)
    assert found.dtype == torch.float32
    for row, length in enumerate(LENGTHS):
        d = [float(policy[row, t]) - float(sampler[row, t]) for t in range(length)]
        for t in range(4):
            exponent = 0.0 if t >= length else d[t] if level == "token" else sum(d)
            assert found[row, t].item() == pytest.approx(min(math.exp(exponent), cap), rel=1e-5)


def test_a_sampler_that_is_the_policy_has_weights_of_one_exactly() -> None:
    policy, _, mask = columns()
    for level in ("token", "sequence"):
        assert torch.equal(truncated_weights(policy, policy, mask, level=level, cap=2.0), torch.ones(4, 4))


def test_weights_carry_no_gradient_and_stay_finite() -> None:
    policy, sampler, mask = columns(scale=1e6)
    weights = truncated_weights(policy.requires_grad_(), sampler, mask, level="sequence", cap=1e30)
    assert not weights.requires_grad
    assert weights.isfinite().all()


@pytest.mark.parametrize("cap", [0.9, 0.0, math.nan])
def test_a_cap_below_one_is_refused(cap) -> None:
    with pytest.raises(ValueError, match=r"`cap` .* must be at least 1"):
        truncated_weights(*columns(), level="token", cap=cap)


def test_sums_largest_gap_and_effective_share_term_by_term() -> None:
    policy, sampler, mask = columns()
    gaps, weights = [], []
    for row, length in enumerate(LENGTHS):
        d = [float(policy[row, t]) - float(sampler[row, t]) for t in range(length)]
        gaps += [abs(x) for x in d]
        weights.append(math.exp(sum(d)))
    sums = sampler_sums(policy, sampler, mask).tolist()
    assert sums == pytest.approx([sum(gaps), sum(weights), sum(w * w for w in weights)], rel=1e-6)
    assert float(largest_gap(policy, sampler, mask)) == pytest.approx(max(gaps), rel=1e-6)
    share = effective_share(sums[1], sums[2], 4)
    assert share == pytest.approx(sum(weights) ** 2 / (4 * sum(w * w for w in weights)))
    assert 0 < share < 1
    assert effective_share(4.0, 4.0, 4.0) == 1.0
    assert effective_share(0.0, 0.0, 0.0) == 0.0


def test_sums_of_parts_add_up() -> None:
    policy, sampler, mask = columns()
    parts = [sampler_sums(policy[i], sampler[i], mask[i]) for i in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(parts[0] + parts[1], sampler_sums(policy, sampler, mask))
    assert float(largest_gap(policy[:0], sampler[:0], mask[:0])) == 0.0
