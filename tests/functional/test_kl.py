from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_rlhf.functional import k1, k3

from .cases import close, finite, normal, seeds


def test_term_by_term():
    logprobs, ref = -normal(3, 4, seed=0).abs(), -normal(3, 4, seed=1).abs()
    for b in range(3):
        for t in range(4):
            d = float(logprobs[b, t]) - float(ref[b, t])
            close(k1(logprobs, ref)[b, t], d)
            close(k3(logprobs, ref)[b, t], math.exp(-d) - 1 + d)


def test_sign_is_policy_minus_reference():
    sure, unsure = torch.tensor([-0.1]), torch.tensor([-2.0])
    assert k1(sure, unsure) > 0 > k1(unsure, sure)
    # k3 is not symmetric either: dear where the reference likes a token that the policy does not
    assert k3(unsure, sure) > k3(sure, unsure)


@given(seeds, st.sampled_from([1e-8, 1e-5, 1e-3, 1.0, 30.0, 1e4, 1e30]))
def test_k3_is_never_below_zero(seed, scale):
    logprobs, ref = normal(32, seed=seed, scale=scale), normal(32, seed=seed + 1, scale=scale)
    assert torch.all(k3(logprobs, ref) >= 0)
    assert finite(k1(logprobs, ref), k3(logprobs, ref))


@given(st.floats(1e-4, 1e-2), st.booleans())
def test_k3_keeps_its_digits_for_small_differences(size, negative):
    d = torch.tensor([-size if negative else size])
    close(k3(d, torch.zeros(1)) / (d.double().square() / 2), [1.0], rtol=2e-2)


def test_k1_and_k3_are_unbiased_and_k3_is_quieter():
    logits, ref_logits = normal(6, seed=2), normal(6, seed=3)
    logp, ref_logp = torch.log_softmax(logits.double(), 0), torch.log_softmax(ref_logits.double(), 0)
    kl = sum(math.exp(p) * (p - q) for p, q in zip(logp.tolist(), ref_logp.tolist(), strict=True))
    mean = {f: float((logp.exp() * f(logp, ref_logp)).sum()) for f in (k1, k3)}
    assert mean[k1] == pytest.approx(kl)
    assert mean[k3] == pytest.approx(kl)
    var = {f: float((logp.exp() * f(logp, ref_logp).square()).sum()) - kl**2 for f in (k1, k3)}
    assert var[k3] < var[k1]


def test_k3_saturates_without_gradient_and_without_nan():
    logprobs = torch.tensor([-math.inf, -200.0, -1.0], requires_grad=True)
    out = k3(logprobs, torch.tensor([-1.0, -1.0, -200.0]))
    out.sum().backward()
    assert finite(out.detach(), logprobs.grad)
    close(out, [math.exp(40) - 41, math.exp(40) - 41, 39])
    assert torch.all(logprobs.grad == 0)


def test_fp32_from_bf16():
    a = torch.tensor([-1.0], dtype=torch.bfloat16)
    assert k1(a, a).dtype == k3(a, torch.tensor([-1.0])).dtype == torch.float32


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"`logprobs` \(2,\) and `ref_logprobs` \(2, 1\) must have one shape"):
        k1(torch.zeros(2), torch.zeros(2, 1))
