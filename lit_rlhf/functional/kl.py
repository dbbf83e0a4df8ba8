"""Per-token estimators of the KL divergence from the policy to the reference, in nats.

With y drawn from π and ``d = log π(y) − log π_ref(y)``, the divergence is E[d]. Both estimators are unbiased: k1 is d
itself, noisy and below zero on some batches; k3 is quiet and never below zero. Source: Schulman, "Approximating KL
Divergence" (2020).

Conventions: ``logprobs`` are under the distribution that drew the tokens, ``ref_logprobs`` of the same tokens under the
other one. Any shape, the same for both (else ``ValueError``), and that of the result; fp32 (fp64 stays fp64).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rlhf.functional.checks import check_shapes

# exp(40) = 2.4e17: its square, and a sum of those over any batch, are finite in fp32
MAX_LOG_RATIO = 40.0


def log_ratio(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``d`` held within ±40, so that its exponential and the square of that stay finite.

    Outside the bounds the gradient is zero. A policy whose token probabilities moved by e^40 is beyond repair; the
    bound is there so that the loss says so with a large number rather than with a NaN.
    """
    return k1(logprobs, ref_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``k₁ = d``: unbiased, may be negative."""
    check_shapes(logprobs=logprobs, ref_logprobs=ref_logprobs)
    wide = torch.promote_types(torch.promote_types(logprobs.dtype, ref_logprobs.dtype), torch.float32)
    return logprobs.to(wide) - ref_logprobs.to(wide)


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """``k₃ = e^(−d) − 1 + d``, the Bregman estimator: unbiased, quiet, never negative; it saturates at |d| = 40."""
    d = log_ratio(logprobs, ref_logprobs)
    # expm1 keeps the digits of a small d; the clamp removes the last rounding error below zero
    return (torch.expm1(-d) + d).clamp(min=0.0)
