"""How much better a token (or a whole response) was than expected."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_rlhf.functional.masking import accumulation_dtype, keep

STD_EPS = 1e-6


def generalized_advantage_estimate(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, gae_lambda: float = 0.95
) -> tuple[Tensor, Tensor]:
    r"""Exponentially weighted sum of temporal-difference errors (GAE).

    .. math::
        \delta_t = r_t + \gamma V_{t+1} - V_t, \quad \hat A_t = \delta_t + \gamma\lambda\hat A_{t+1}, \quad
        R_t = \hat A_t + V_t

    with :math:`V = \hat A = 0` past the last kept token; t + 1 is the next *kept* token, so holes in the mask are
    stepped over. Source: Schulman et al. 2016 (arXiv 1506.02438), eq. 16; paper section 3 and Figure 5, detail 10.

    Args:
        rewards: Per token, KL penalty included, ``(B, T)``.
        values: The critic's, before each token, ``(B, T)``.
        mask: Response tokens, ``(B, T)`` bool.
        gamma: Discount, in [0, 1].
        gae_lambda: 0 is the one-step error (least variance), 1 the return minus the value (no bias).

    Returns:
        Advantages and returns, ``(B, T)`` fp32 each, zero outside the mask.

    Raises:
        ValueError: If the shapes differ, or ``gamma`` or ``gae_lambda`` leaves [0, 1].
    """
    _check_unit_interval(gamma=gamma, gae_lambda=gae_lambda)
    kept_rewards, kept_values = keep(rewards, mask), keep(values, mask)
    advantages = torch.zeros_like(kept_values)
    next_value = next_advantage = kept_values.new_zeros(mask.size(0))
    for t in range(mask.size(1) - 1, -1, -1):
        value, here = kept_values[:, t], mask[:, t]
        delta = kept_rewards[:, t] + gamma * next_value - value
        advantage = delta + gamma * gae_lambda * next_advantage
        next_value = torch.where(here, value, next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
        advantages[:, t] = advantage
    advantages = keep(advantages, mask)
    return advantages, advantages + kept_values


def discounted_returns(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    r"""Sum of the rewards from each token on.

    .. math:: R_t = r_t + \gamma R_{t+1}

    Equal to the returns of :func:`generalized_advantage_estimate` with :math:`\lambda = 1` and any values.

    Args:
        rewards: Per token, ``(B, T)``.
        mask: Response tokens, ``(B, T)`` bool.
        gamma: Discount, in [0, 1].

    Returns:
        ``(B, T)`` fp32, zero outside the mask.

    Raises:
        ValueError: If the shapes differ or ``gamma`` leaves [0, 1].
    """
    return generalized_advantage_estimate(rewards, torch.zeros_like(rewards), mask, gamma=gamma, gae_lambda=1.0)[1]


def group_normalized(scores: Tensor, group_size: int, *, scale_by_std: bool = True) -> Tensor:
    r"""Score minus the mean of its group of responses to one prompt (GRPO; without the scale, Dr. GRPO).

    .. math:: \hat A_i = \frac{s_i - \bar s}{\sigma + \epsilon}

    with the sample standard deviation of the group and :math:`\epsilon` = 1e-6. Source: Shao et al. 2024
    (arXiv 2402.03300), section 4.1.2; Liu et al. 2025 (arXiv 2503.20783) for ``scale_by_std=False``.

    Args:
        scores: ``(B,)``; each run of ``group_size`` consecutive rows answers one prompt.
        group_size: Responses a prompt, at least 2.
        scale_by_std: Whether to divide by the standard deviation.

    Returns:
        ``(B,)`` fp32; zero for a group whose scores are all equal.

    Raises:
        ValueError: If ``scores`` is not 1-D, or B is not a multiple of ``group_size``, or that is under 2.
    """
    groups = _grouped(scores, group_size)
    deviation = groups - groups.mean(1, keepdim=True)
    if scale_by_std:
        variance = deviation.square().sum(1, keepdim=True) / (group_size - 1)
        deviation = deviation / (variance.sqrt() + STD_EPS)
    return deviation.flatten().float()


def leave_one_out(scores: Tensor, group_size: int) -> Tensor:
    r"""Score minus the mean of the *other* responses to its prompt (RLOO): an unbiased baseline.

    .. math:: \hat A_i = s_i - \frac{1}{G - 1} \sum_{j \ne i} s_j

    Source: Ahmadian et al. 2024 (arXiv 2402.14740), eq. 8.

    Args:
        scores: ``(B,)``; each run of ``group_size`` consecutive rows answers one prompt.
        group_size: G, responses a prompt, at least 2.

    Returns:
        ``(B,)`` fp32.

    Raises:
        ValueError: If ``scores`` is not 1-D, or B is not a multiple of ``group_size``, or that is under 2.
    """
    groups = _grouped(scores, group_size)
    deviation = groups - groups.mean(1, keepdim=True)
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
