from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.functional import accuracy, pairwise_loss

from .cases import close, finite, normal, seeds


def test_term_by_term():
    chosen, rejected, margin = normal(9, seed=0), normal(9, seed=1), normal(9, seed=2).abs()
    plain, with_margin = pairwise_loss(chosen, rejected), pairwise_loss(chosen, rejected, margin=margin)
    for i in range(9):
        gap = float(chosen[i]) - float(rejected[i])
        close(plain[i], -math.log(1 / (1 + math.exp(-gap))))
        close(with_margin[i], -math.log(1 / (1 + math.exp(-(gap - float(margin[i]))))))


def test_the_right_order_costs_less():
    good, bad = torch.tensor([2.0]), torch.tensor([-1.0])
    assert pairwise_loss(good, bad) < math.log(2) < pairwise_loss(bad, good)
    close(pairwise_loss(good, good), [math.log(2)])


def test_gradient_pulls_the_two_scores_apart():
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    pairwise_loss(chosen, rejected).sum().backward()
    close(chosen.grad, [-0.5])
    close(rejected.grad, [0.5])


@given(seeds, st.sampled_from([0.0, 1.0, 1e4, 1e30]))
def test_badly_wrong_pairs_cost_their_difference(seed, scale):
    chosen = normal(5, seed=seed, scale=scale).requires_grad_()
    rejected = normal(5, seed=seed + 1, scale=scale)
    loss = pairwise_loss(chosen, rejected)
    loss.sum().backward()
    assert finite(loss.detach(), chosen.grad)
    gap = (rejected - chosen.detach()).double()
    assert torch.all(loss.double() >= gap.clamp(min=0) - 1e-6)
    assert torch.all(loss.double() <= gap.clamp(min=0) * (1 + 1e-6) + math.log(2) + 1e-6)


def test_accuracy_counts_a_tie_as_half():
    chosen = torch.tensor([1.0, 1.0, 1.0], requires_grad=True)
    got = accuracy(chosen, torch.tensor([0.0, 1.0, 2.0]))
    close(got, [1.0, 0.5, 0.0])
    assert not got.requires_grad


def test_fp32_from_bf16():
    x = torch.tensor([256.0], dtype=torch.bfloat16)
    close(pairwise_loss(x, x + 2, margin=torch.tensor([1.0])), [3 + math.log1p(math.exp(-3))])
    assert pairwise_loss(x, x).dtype == accuracy(x, x).dtype == torch.float32


def test_refusals():
    with pytest.raises(ValueError, match=r"`chosen` \(3,\) and `rejected` \(2,\) must have one shape"):
        pairwise_loss(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"`chosen` \(3,\) and `margin` \(1,\) must have one shape"):
        pairwise_loss(torch.zeros(3), torch.zeros(3), margin=torch.zeros(1))
    with pytest.raises(ValueError, match="`rejected`"):
        accuracy(torch.zeros(3), torch.zeros(3, 1))
