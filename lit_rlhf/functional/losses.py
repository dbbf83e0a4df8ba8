"""The losses of PPO, per token: columns in, a column of losses out.

A loss knows neither mask nor denominator. Whoever minimizes it keeps the response tokens, sums and divides by the count
of the GLOBAL minibatch (:func:`normalized_sum`), so that the losses and gradients of micro-batches and ranks add up to
those of the minibatch, however it was cut.

Conventions: columns are ``(B, T)``, computed in fp32 (fp64 stays fp64). ``clipped`` is bool, True where the clip takes
the token's gradient away. ``ρ = π(y) / π_old(y)`` is the probability ratio of the drawn token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.functional.kl import k3, log_ratio
from lit_rlhf.functional.masking import keep


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_range: float | None = 0.2
) -> tuple[Tensor, Tensor]:
    """PPO's clipped surrogate, ``−min(ρ Â, clip(ρ, 1 − ε, 1 + ε) Â)``.

    Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7; paper eq. 15 and Figure 5, detail 11.

    Args:
        logprobs: Under the policy being trained, with gradient.
        old_logprobs: Under the policy that drew the tokens.
        advantages: Whitened or not.
        clip_range: ε; None does not clip.

    Returns:
        ``(loss, clipped)``.

    Raises:
        ValueError: If the shapes differ or ``clip_range`` is not positive.
    """
    _check_clip_range(clip_range)
    ratio = log_ratio(logprobs, old_logprobs).exp()
    loss = -ratio * advantages
    if clip_range is None:
        return loss, torch.zeros_like(loss, dtype=torch.bool)
    bounded = -ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    # The maximum of two losses is the minimum of two gains. A tie (ratio inside the clip) keeps its gradient.
    return torch.max(loss, bounded), (bounded > loss).detach()


def kl_penalty_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, beta: float) -> Tensor:
    """PPO with a penalty on the distance from the old policy in place of the clip, ``−ρ Â + β k₃(π_old, π)``.

    ``k₃ = ρ − 1 − log ρ`` estimates KL(π_old ‖ π) without bias from the old policy's tokens, and so does its gradient.
    Source: Schulman et al. 2017, eq. 8; paper eq. 14.

    Args:
        logprobs: Under the policy being trained, with gradient.
        old_logprobs: Under the policy that drew the tokens.
        advantages: Whitened or not.
        beta: Weight of the divergence, not negative.

    Raises:
        ValueError: If the shapes differ or ``beta`` is negative.
    """
    if not beta >= 0:
        raise ValueError(f"`beta` ({beta}) must not be negative.")
    log_rho = log_ratio(logprobs, old_logprobs)
    return -log_rho.exp() * advantages + beta * _old_to_new_kl(log_rho)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip_range: float | None = 0.2
) -> tuple[Tensor, Tensor]:
    """Half the squared error of the critic, ``½ max((V − R)², (clip(V, V_old − c, V_old + c) − R)²)``.

    Source: paper section 3 and Figure 5, detail 7; the maximum is the release's and OpenAI baselines'.

    Args:
        values: The critic's, with gradient.
        old_values: The critic's at rollout time.
        returns: Targets.
        clip_range: c, in units of the value; None takes the unclipped error alone.

    Returns:
        ``(loss, clipped)``; ``clipped`` where the clipped error is the larger.

    Raises:
        ValueError: If ``clip_range`` is not positive.
    """
    _check_clip_range(clip_range)
    values, old_values, returns = (x.to(_wide(x)) for x in (values, old_values, returns))
    error = (values - returns).square()
    if clip_range is None:
        return 0.5 * error, torch.zeros_like(error, dtype=torch.bool)
    bounded = (values.clamp(old_values - clip_range, old_values + clip_range) - returns).square()
    return 0.5 * torch.max(error, bounded), (bounded > error).detach()


def entropy_loss(entropy: Tensor, *, clip: float | None = None, mean_entropy: float | Tensor | None = None) -> Tensor:
    """Entropy bonus, ``−H``, or the paper's pull of the mean entropy towards a level c: ``|mean H − c|``.

    The level is the released code's; its default, 35 nats, is above the entropy of any vocabulary (ln V is about 11),
    so there the term is the plain bonus plus a constant. An absolute value of a mean does not add over micro-batches:
    what is returned is ``s (H_t − c)`` with s the sign of ``mean_entropy − c``, whose mean over the minibatch is the
    term, gradient included. Source: paper Figure 5, detail 3, and Figure 16.

    Args:
        entropy: Of the next-token distributions, nats, with gradient.
        clip: Level c in nats; None is the plain bonus.
        mean_entropy: Mean entropy that decides the sign, the same for every micro-batch and rank.

    Raises:
        ValueError: If a level comes without ``mean_entropy``.
    """
    entropy = entropy.to(_wide(entropy))
    if clip is None:
        return -entropy
    if mean_entropy is None:
        raise ValueError(f"`clip` ({clip}) needs `mean_entropy`: the sign of the pull is that of a whole minibatch.")
    mean = torch.as_tensor(mean_entropy).detach().to(entropy)
    return torch.sign(mean - clip) * (entropy - clip)


def lm_loss(logprobs: Tensor) -> Tensor:
    """Negative log-likelihood of text, ``−log π(y)``, nats: SFT, the reward model's regularizer, and ptx.

    Source: paper eq. 17 (ptx) and the second term of eq. 2.
    """
    return -logprobs.to(_wide(logprobs))


def normalized_sum(per_token: Tensor, mask: Tensor, normalizer: float | Tensor | None = None) -> Tensor:
    """Sum of the kept losses over ``normalizer``: a micro-batch's share in the loss of the global minibatch.

    Args:
        per_token: Losses, any shape; what lies outside the mask may be garbage.
        mask: The same shape, bool.
        normalizer: Tokens of the global minibatch; None counts ``mask``. Zero means that there are no tokens: the sum
            is zero as well.

    Returns:
        0-d fp32.

    Raises:
        ValueError: If the shapes differ or the mask is not bool.
    """
    total = keep(per_token, mask).sum()
    if isinstance(normalizer, int | float):  # a number of the host's: nothing to send to a device and wait for
        return total / (normalizer if normalizer > 0 else 1.0)
    count = (mask.sum() if normalizer is None else normalizer).to(total)
    return total / torch.where(count > 0, count, torch.ones_like(count))


@dataclass(frozen=True)
class RatioSums:
    """How far the policy has moved from the one that drew the tokens; 0-d fp32, without gradient.

    Attributes:
        ratio: Sum of ρ over the tokens.
        approx_kl: Sum of k₃(π_old, π) = ρ − 1 − log ρ over the tokens, nats.
        drift: Largest ``|ρ − 1|``; combines by maximum, not by sum. Exactly zero before the first update.
    """

    ratio: Tensor
    approx_kl: Tensor
    drift: Tensor


@torch.no_grad()
def ratio_sums(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> RatioSums:
    """What every policy loss is watched by, whatever it does with the ratio itself.

    Raises:
        ValueError: If the shapes differ or the mask is not bool.
    """
    log_rho = log_ratio(keep(logprobs, mask), keep(old_logprobs, mask))
    ratio = log_rho.exp()
    drift = keep(ratio - 1.0, mask).abs()
    return RatioSums(
        ratio=keep(ratio, mask).sum(),
        approx_kl=keep(_old_to_new_kl(log_rho), mask).sum(),
        drift=drift.max() if drift.numel() else drift.sum(),
    )


def _old_to_new_kl(log_rho: Tensor) -> Tensor:
    """k₃ with the old policy in the place of the one that drew the tokens: ρ − 1 − log ρ."""
    return k3(-log_rho, torch.zeros_like(log_rho))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check_clip_range(clip_range: float | None) -> None:
    if clip_range is not None and not clip_range > 0:
        raise ValueError(f"`clip_range` ({clip_range}) must be positive, or None for no clipping.")
