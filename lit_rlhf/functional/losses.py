"""The losses of PPO: masked sums over a normalizer, so that micro-batches and ranks add up to the whole batch.

Every loss takes ``normalizer``, the number of response tokens of the GLOBAL minibatch. With it, the losses (and the
gradients) of the micro-batches sum to those of the minibatch, however it was cut; None divides by this batch's own
count. The other fields are sums as well: add them up, then divide once. They carry no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.functional.kl import k3, log_ratio
from lit_rlhf.functional.masking import keep


@dataclass(frozen=True)
class PolicyLoss:
    """A policy loss and sums over its tokens, all 0-d fp32.

    Attributes:
        loss: What to minimize.
        tokens: How many tokens.
        clipped: How many of them the clip robs of their gradient.
        approx_kl: Sum of k3 from the old policy to the new one, nats.
        ratio: Sum of the probability ratios.
        ratio_drift: Largest ``|ratio - 1|``; combines by maximum, not by sum. Zero before the first update.
    """

    loss: Tensor
    tokens: Tensor
    clipped: Tensor
    approx_kl: Tensor
    ratio: Tensor
    ratio_drift: Tensor


@dataclass(frozen=True)
class ValueLoss:
    """A value loss and sums over its tokens, all 0-d fp32.

    Attributes:
        loss: What to minimize.
        tokens: How many tokens.
        clipped: How many of them pay the clipped error.
    """

    loss: Tensor
    tokens: Tensor
    clipped: Tensor


@dataclass(frozen=True)
class EntropyTerm:
    """An entropy term and sums over its tokens, all 0-d fp32.

    Attributes:
        loss: What to minimize.
        tokens: How many tokens.
        entropy: Sum of the entropies, nats.
    """

    loss: Tensor
    tokens: Tensor
    entropy: Tensor


@dataclass(frozen=True)
class LMLoss:
    """A language-modelling loss and sums over its tokens, all 0-d fp32.

    Attributes:
        loss: What to minimize.
        tokens: How many tokens.
        nll: Sum of the negative log-probabilities, nats.
    """

    loss: Tensor
    tokens: Tensor
    nll: Tensor


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float | None = 0.2,
    normalizer: float | Tensor | None = None,
) -> PolicyLoss:
    r"""PPO's clipped surrogate.

    .. math::
        L = -\frac1N \sum_{t} \min\left(\rho_t \hat A_t,\ \operatorname{clip}(\rho_t, 1-\epsilon, 1+\epsilon)
        \hat A_t\right), \qquad \rho_t = \frac{\pi(y_t)}{\pi_{old}(y_t)}

    Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7; paper eq. 15 and Figure 5, detail 11.

    Args:
        logprobs: Under the policy being trained, ``(B, T)``, with gradient.
        old_logprobs: Under the policy that drew the tokens, ``(B, T)``.
        advantages: Whitened or not, ``(B, T)``.
        mask: Response tokens, ``(B, T)`` bool.
        clip_range: :math:`\epsilon`; None does not clip.
        normalizer: N, the tokens of the global minibatch; None counts ``mask``.

    Returns:
        See :class:`PolicyLoss`.

    Raises:
        ValueError: If the shapes differ, the mask is not bool, or ``clip_range`` is not positive.
    """
    _check_clip_range(clip_range)
    log_rho = log_ratio(keep(logprobs, mask), keep(old_logprobs, mask))
    ratio, kept_advantages = log_rho.exp(), keep(advantages, mask)
    loss = -ratio * kept_advantages
    clipped = torch.zeros_like(mask)
    if clip_range is not None:
        bounded = -ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * kept_advantages
        clipped = bounded > loss
        loss = torch.max(loss, bounded)
    return _policy_loss(loss, clipped, log_rho, mask, normalizer)


def kl_penalty_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    beta: float,
    normalizer: float | Tensor | None = None,
) -> PolicyLoss:
    r"""PPO with a penalty on the distance from the old policy in place of the clip.

    .. math:: L = \frac1N \sum_{t} \left( -\rho_t \hat A_t + \beta\, k_3(\pi_{old}, \pi)_t \right)

    :math:`k_3 = \rho - 1 - \log\rho` estimates :math:`KL(\pi_{old} \| \pi)` without bias from the old policy's tokens,
    and so does its gradient. Source: Schulman et al. 2017, eq. 8; paper eq. 14.

    Args:
        logprobs: Under the policy being trained, ``(B, T)``, with gradient.
        old_logprobs: Under the policy that drew the tokens, ``(B, T)``.
        advantages: Whitened or not, ``(B, T)``.
        mask: Response tokens, ``(B, T)`` bool.
        beta: Weight of the divergence, not negative.
        normalizer: N, the tokens of the global minibatch; None counts ``mask``.

    Returns:
        See :class:`PolicyLoss`; ``clipped`` is zero.

    Raises:
        ValueError: If the shapes differ, the mask is not bool, or ``beta`` is negative.
    """
    if not beta >= 0:
        raise ValueError(f"`beta` ({beta}) must not be negative.")
    log_rho = log_ratio(keep(logprobs, mask), keep(old_logprobs, mask))
    loss = -log_rho.exp() * keep(advantages, mask) + beta * _old_to_new_kl(log_rho)
    return _policy_loss(loss, torch.zeros_like(mask), log_rho, mask, normalizer)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip_range: float | None = 0.2,
    normalizer: float | Tensor | None = None,
) -> ValueLoss:
    r"""Squared error of the critic, the worse of the free and the clipped value.

    .. math::
        L = \frac{1}{2N} \sum_t \max\left((V_t - R_t)^2,\ (\operatorname{clip}(V_t, V^{old}_t - c, V^{old}_t + c)
        - R_t)^2\right)

    Source: paper section 3 and Figure 5, detail 7; the maximum is the release's and OpenAI baselines'.

    Args:
        values: The critic's, ``(B, T)``, with gradient.
        old_values: The critic's at rollout time, ``(B, T)``.
        returns: Targets, ``(B, T)``.
        mask: Response tokens, ``(B, T)`` bool.
        clip_range: c, in units of the value; None takes the free error alone.
        normalizer: N, the tokens of the global minibatch; None counts ``mask``.

    Returns:
        See :class:`ValueLoss`.

    Raises:
        ValueError: If the shapes differ, the mask is not bool, or ``clip_range`` is not positive.
    """
    _check_clip_range(clip_range)
    kept, old, target = keep(values, mask), keep(old_values, mask), keep(returns, mask)
    error = (kept - target).square()
    clipped = torch.zeros_like(mask)
    if clip_range is not None:
        bounded = (kept.clamp(old - clip_range, old + clip_range) - target).square()
        clipped = bounded > error
        error = torch.max(error, bounded)
    tokens = _count(mask)
    return ValueLoss(loss=0.5 * _normalized(error, tokens, normalizer), tokens=tokens, clipped=_count(clipped))


def entropy_term(
    entropy: Tensor,
    mask: Tensor,
    *,
    coef: float = 0.01,
    clip: float | None = None,
    normalizer: float | Tensor | None = None,
    mean_entropy: float | Tensor | None = None,
) -> EntropyTerm:
    r"""Entropy bonus, or the paper's pull of the mean entropy towards a level.

    .. math::
        L = -\frac{\eta}{N} \sum_t H_t \text{ (no clip)}, \qquad
        L = \eta\, \left| \frac1N \sum_t H_t - c \right| \text{ (clip } c\text{)}

    The level is the released code's; its default, 35 nats, is above the entropy of any vocabulary (ln V is about 11),
    so there the term is the plain bonus plus a constant. An absolute value of a mean does not add over micro-batches:
    what is returned is :math:`\eta s (\sum_t H_t - c\, n) / N` with n this batch's tokens and s the sign of
    ``mean_entropy - clip``, whose sum over micro-batches is the term above, gradient included. Source: paper Figure 5,
    detail 3, and Figure 16.

    Args:
        entropy: Of the next-token distributions, nats, ``(B, T)``, with gradient.
        mask: Response tokens, ``(B, T)`` bool.
        coef: :math:`\eta`, 0.01 in the paper.
        clip: Level c in nats; None is the plain bonus.
        normalizer: N, the tokens of the global minibatch; None counts ``mask``.
        mean_entropy: Mean entropy of the global minibatch, which decides the sign; None takes this batch's own mean,
            which is right when the minibatch is one micro-batch.

    Returns:
        See :class:`EntropyTerm`.

    Raises:
        ValueError: If the shapes differ or the mask is not bool.
    """
    kept, tokens = keep(entropy, mask), _count(mask)
    total = kept.sum().detach()
    if clip is None:
        return EntropyTerm(loss=-coef * _normalized(kept, tokens, normalizer), tokens=tokens, entropy=total)
    mean = total / tokens.clamp(min=1) if mean_entropy is None else torch.as_tensor(mean_entropy).to(total)
    distance = torch.sign(mean.detach() - clip) * keep(kept - clip, mask)
    return EntropyTerm(loss=coef * _normalized(distance, tokens, normalizer), tokens=tokens, entropy=total)


def lm_loss(logprobs: Tensor, mask: Tensor, normalizer: float | Tensor | None = None) -> LMLoss:
    r"""Negative log-likelihood of text: SFT, the reward model's regularizer, and ptx.

    .. math:: L = -\frac1N \sum_t \log\pi(y_t)

    Source: paper eq. 17 (ptx) and the second term of eq. 2.

    Args:
        logprobs: Of the text's tokens, ``(B, L)``, with gradient.
        mask: Tokens that are learned, ``(B, L)`` bool.
        normalizer: N, such tokens in the global batch; None counts ``mask``.

    Returns:
        See :class:`LMLoss`.

    Raises:
        ValueError: If the shapes differ or the mask is not bool.
    """
    nll, tokens = -keep(logprobs, mask), _count(mask)
    return LMLoss(loss=_normalized(nll, tokens, normalizer), tokens=tokens, nll=nll.sum().detach())


def _policy_loss(
    per_token: Tensor, clipped: Tensor, log_rho: Tensor, mask: Tensor, normalizer: float | Tensor | None
) -> PolicyLoss:
    tokens = _count(mask)
    ratio = log_rho.detach().exp()
    drift = keep(ratio - 1.0, mask).abs()
    return PolicyLoss(
        loss=_normalized(per_token, tokens, normalizer),
        tokens=tokens,
        clipped=_count(clipped),
        approx_kl=keep(_old_to_new_kl(log_rho.detach()), mask).sum(),
        ratio=keep(ratio, mask).sum(),
        ratio_drift=drift.max() if drift.numel() else drift.sum(),
    )


def _old_to_new_kl(log_rho: Tensor) -> Tensor:
    """k3 with the old policy in the place of the one that drew the tokens: rho - 1 - log rho."""
    return k3(-log_rho, torch.zeros_like(log_rho))


def _normalized(per_token: Tensor, tokens: Tensor, normalizer: float | Tensor | None) -> Tensor:
    """Sum over ``normalizer``; where that is zero there are no tokens and the sum is zero as well."""
    count = tokens if normalizer is None else torch.as_tensor(normalizer, device=per_token.device).to(per_token.dtype)
    return per_token.sum() / torch.where(count > 0, count, torch.ones_like(count))


def _count(mask: Tensor) -> Tensor:
    return mask.sum().float()


def _check_clip_range(clip_range: float | None) -> None:
    if clip_range is not None and not clip_range > 0:
        raise ValueError(f"`clip_range` ({clip_range}) must be positive, or None for no clipping.")
