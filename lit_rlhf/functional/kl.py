r"""Per-token estimators of the KL divergence from the policy to the reference.

With :math:`y \sim \pi` and :math:`d = \log\pi(y) - \log\pi_{ref}(y)` the divergence is :math:`E[d]`. The three
estimators differ in bias and variance: k1 is unbiased but noisy and may be negative on a batch, k2 is biased and
non-negative, k3 is unbiased, non-negative and quiet. Source: Schulman, "Approximating KL Divergence" (2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

# exp(40) = 2.4e17: its square, and a sum of those over any batch, are finite in fp32
MAX_LOG_RATIO = 40.0


def log_ratio(logprobs: Tensor, other_logprobs: Tensor) -> Tensor:
    """``logprobs - other_logprobs`` in fp32, held within ±40: its exponential and the square of that stay finite.

    Outside the bounds the gradient is zero. A policy whose token probabilities moved by e^40 is beyond repair; the
    bound is there so that the loss says so with a large number rather than with a NaN.

    Args:
        logprobs: Any shape.
        other_logprobs: The same shape.

    Returns:
        fp32 (fp64 stays fp64), the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    return k1(logprobs, other_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    r"""The log-ratio itself: unbiased, may be negative.

    .. math:: k_1 = d = \log\pi(y) - \log\pi_{ref}(y)

    Args:
        logprobs: Of the tokens under the distribution they were drawn from, any shape.
        ref_logprobs: Of the same tokens under the other one, the same shape.

    Returns:
        fp32 (fp64 stays fp64), nats, the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    if logprobs.shape != ref_logprobs.shape:
        raise ValueError(
            f"`logprobs` {tuple(logprobs.shape)} and `ref_logprobs` {tuple(ref_logprobs.shape)} must have one shape."
        )
    wide = torch.promote_types(torch.promote_types(logprobs.dtype, ref_logprobs.dtype), torch.float32)
    return logprobs.to(wide) - ref_logprobs.to(wide)


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    r"""Half the squared log-ratio: non-negative, biased, low variance.

    .. math:: k_2 = \tfrac12 d^2

    Args:
        logprobs: Of the tokens under the distribution they were drawn from, any shape.
        ref_logprobs: Of the same tokens under the other one, the same shape.

    Returns:
        fp32 (fp64 stays fp64), nats, the same shape.

    Raises:
        ValueError: If the shapes differ.
    """
    return 0.5 * k1(logprobs, ref_logprobs).square()


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    r"""The Bregman estimator: non-negative, unbiased, low variance.

    .. math:: k_3 = e^{-d} - 1 + d

    Saturates at :math:`|d| = 40` (see :func:`log_ratio`).

    Args:
        logprobs: Of the tokens under the distribution they were drawn from, any shape.
        ref_logprobs: Of the same tokens under the other one, the same shape.

    Returns:
        fp32 (fp64 stays fp64), nats, the same shape, never below zero.

    Raises:
        ValueError: If the shapes differ.
    """
    d = log_ratio(logprobs, ref_logprobs)
    # expm1 keeps the digits of a small d; the clamp removes the last rounding error below zero
    return (torch.expm1(-d) + d).clamp(min=0.0)
