"""How much better a token (or a whole response) was than expected.

Conventions: ``rewards (B, T)`` are per token, KL penalty included, ``values (B, T)`` the critic's before each token,
``mask (B, T)`` True at response tokens; results are fp32 and zero outside the mask. ``scores (B,)`` come in groups of
G = ``group_size`` consecutive rows that answer one prompt. Other shapes, γ or λ outside [0, 1], G under 2 or no divisor
of B: ``ValueError``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rlhf.functional.masking import accumulation_dtype, keep

STD_EPS = 1e-6


def generalized_advantage_estimate(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, gae_lambda: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Exponentially weighted sum of temporal-difference errors (GAE).

    ``δ_t = r_t + γ V_{t+1} − V_t``, ``Â_t = δ_t + γ λ Â_{t+1}``, ``R_t = Â_t + V_t``

    with V = Â = 0 past the last kept token; t + 1 is the next *kept* token. Source: Schulman et al. 2016
    (arXiv 1506.02438), eq. 16; paper section 3 and Figure 5, detail 10.

    Args:
        rewards: r.
        values: V.
        mask: Tokens that count.
        gamma: γ, the discount.
        gae_lambda: λ: 0 is the one-step error (least variance), 1 the return minus the value (no bias).

    Returns:
        Advantages Â and returns R.
    """
    _check_unit_interval(gamma=gamma, gae_lambda=gae_lambda)
    kept_rewards, kept_values = keep(rewards, mask), keep(values, mask)
    advantages = torch.zeros_like(kept_values)
    next_value = next_advantage = kept_values.new_zeros(mask.size(0))
    # Backwards, for a token's advantage needs the next one's. All rows step together, whatever their lengths.
    for t in range(mask.size(1) - 1, -1, -1):
        value, here = kept_values[:, t], mask[:, t]
        delta = kept_rewards[:, t] + gamma * next_value - value
        advantage = delta + gamma * gae_lambda * next_advantage
        # A position that is not kept hands on what came from its right: so a row begins at its own last token, and a
        # hole in the mask (text that the policy did not write) costs neither discount nor value.
        next_value = torch.where(here, value, next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
        advantages[:, t] = advantage
    advantages = keep(advantages, mask)
    return advantages, advantages + kept_values


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Sum of the rewards from each token on, ``R_t = r_t + γ R_{t+1}``: GAE's returns for λ = 1, whatever V is."""
    return generalized_advantage_estimate(rewards, torch.zeros_like(rewards), mask, gamma=gamma, gae_lambda=1.0)[1]


def group_normalized(scores: Tensor, group_size: int, *, scale_by_std: bool = True) -> Tensor:
    """Score minus the mean of its group, ``Â_i = (s_i − s̄) / (σ + ε)``: GRPO; without the scale, Dr. GRPO.

    σ is the group's sample standard deviation (divisor G − 1), ε = 1e-6; equal scores give zero. Source: Shao et al.
    2024 (arXiv 2402.03300), section 4.1.2; Liu et al. 2025 (arXiv 2503.20783) for ``scale_by_std=False``.
    """
    groups = _grouped(scores, group_size)
    deviation = groups - groups.mean(1, keepdim=True)
    if scale_by_std:
        variance = deviation.square().sum(1, keepdim=True) / (group_size - 1)
        deviation = deviation / (variance.sqrt() + STD_EPS)
    return deviation.flatten().float()


def leave_one_out(scores: Tensor, group_size: int) -> Tensor:
    """Score minus the mean of the *others* of its group, ``Â_i = s_i − Σ_{j≠i} s_j / (G − 1)``: an unbiased baseline.

    Source: Ahmadian et al. 2024 (arXiv 2402.14740), eq. 8 (RLOO).
    """
    groups = _grouped(scores, group_size)
    deviation = groups - groups.mean(1, keepdim=True)
    # s̄ holds a share 1/G of s_i itself: taking that out stretches the deviation by G / (G − 1)
    return (deviation * (group_size / (group_size - 1))).flatten().float()


def _grouped(scores: Tensor, group_size: int) -> Tensor:
    if group_size < 2:
        raise ValueError(f"`group_size` ({group_size}) must be at least 2: one response has nothing to compare with.")
    if scores.dim() != 1 or scores.numel() % group_size:
        raise ValueError(
            f"`scores` {tuple(scores.shape)} must be (B,) with B a multiple of `group_size` ({group_size})."
        )
    return scores.to(accumulation_dtype(scores.device)).view(-1, group_size)


def _check_unit_interval(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"`{name}` ({value}) must be in [0, 1].")
