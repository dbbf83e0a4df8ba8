"""The sampler's distance from the policy, and the importance weights that make up for it.

An engine that computes otherwise than the policy draws from a slightly different distribution μ. With
``d_t = log π_old(y_t) − log μ(y_t)``, both of raw logits, ``w_t = e^{d_t}`` is a token's importance weight and
``w = e^{Σ_t d_t}`` a response's. Truncated at a cap c they are biased and of bounded variance (Ionides 2008); in RLHF:
Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training", verl's and TRL's options.

Conventions: ``logprobs`` are the policy's, ``sampler_logprobs`` the engine's, ``(B, T)``; nothing carries a gradient.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lit_rlhf.functional.kl import MAX_LOG_RATIO, k1, log_ratio
from lit_rlhf.functional.masking import accumulation_dtype, keep

SamplerCorrection = Literal["token", "sequence"]


@torch.no_grad()
def truncated_weights(
    logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, *, level: SamplerCorrection, cap: float
) -> Tensor:
    """``min(w_t, c)`` of each token, or ``min(w, c)`` of its response; 1 outside the mask.

    Args:
        logprobs: Of the policy, ``(B, T)``.
        sampler_logprobs: Of the engine, ``(B, T)``.
        mask: Response tokens, ``(B, T)`` bool.
        level: Whose ratio it is.
        cap: c, at least 1.

    Returns:
        ``(B, T)`` fp32.

    Raises:
        ValueError: If the shapes differ, the level is another, or the cap is below 1, which would shrink what needs no
            correction.
    """
    if level not in ("token", "sequence"):
        raise ValueError(f"`level` ({level}) must be `token` or `sequence`.")
    if not cap >= 1:
        raise ValueError(f"`cap` ({cap}) must be at least 1.")
    d = keep(log_ratio(logprobs, sampler_logprobs), mask)
    if level == "sequence":
        d = d.sum(1, keepdim=True).expand_as(d)
    weights = d.clamp(max=math.log(cap)).exp()
    return torch.where(mask, weights, torch.ones_like(weights))


@torch.no_grad()
def sampler_sums(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``(Σ_t |d_t|, Σ w, Σ w²)``: what adds up over ranks; w is a response's weight, its logarithm held within ±40.

    Returns:
        ``(3,)`` fp64 (fp32 on devices without it).
    """
    d = keep(k1(logprobs, sampler_logprobs), mask).to(accumulation_dtype(logprobs.device))
    weights = d.sum(1).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return torch.stack([d.abs().sum(), weights.sum(), weights.square().sum()])


@torch.no_grad()
def largest_gap(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
    """``max |d_t|``, 0-d fp32; combines by maximum. Zero where there are no tokens."""
    d = keep(k1(logprobs, sampler_logprobs), mask).abs()
    return d.max() if d.numel() else d.sum()


def effective_share(total: float, squares: float, count: float) -> float:
    """``(Σ w)² / (n Σ w²)`` in (0, 1]: the effective sample size as a share of the n responses (Kish 1965).

    1 where all weights are equal; 0 where there are none.
    """
    return total * total / (count * squares) if count and squares else 0.0
