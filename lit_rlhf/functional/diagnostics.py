"""Numbers that say whether training goes well; they never carry a gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.functional.masking import accumulation_dtype, keep, masked_mean


@torch.no_grad()
def explained_variance_sums(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    r"""The five sums :func:`explained_variance_from_sums` needs; they add over micro-batches and ranks.

    .. math:: \left(n,\ \sum R,\ \sum R^2,\ \sum e,\ \sum e^2\right), \qquad e = R - V

    Args:
        values: The critic's, ``(B, T)``.
        returns: Its targets, ``(B, T)``.
        mask: Response tokens, ``(B, T)`` bool.

    Returns:
        ``(5,)`` fp64 (fp32 on devices without it).

    Raises:
        ValueError: If the shapes differ or the mask is not bool.
    """
    wide = accumulation_dtype(values.device)
    target = keep(returns, mask).to(wide)
    error = target - keep(values, mask).to(wide)
    count = mask.sum().to(wide)
    return torch.stack([count, target.sum(), target.square().sum(), error.sum(), error.square().sum()])


def explained_variance_from_sums(sums: Tensor) -> Tensor:
    r"""Share of the returns' variance that the critic accounts for.

    .. math:: 1 - \frac{\operatorname{Var}(R - V)}{\operatorname{Var}(R)}

    1 is a perfect critic, 0 one no better than a constant, negative worse than that.

    Args:
        sums: ``(5,)`` from :func:`explained_variance_sums`, added up.

    Returns:
        0-d, the dtype of ``sums``; 0 where the returns do not vary.
    """
    count, target, target_sq, error, error_sq = sums.unbind()
    n = count.clamp(min=1)
    target_var = target_sq / n - (target / n).square()
    error_var = error_sq / n - (error / n).square()
    # below this the variance is the rounding error of the two terms that it is the difference of
    varies = target_var > 8 * torch.finfo(sums.dtype).eps * target_sq / n
    return torch.where(varies, 1.0 - error_var / torch.where(varies, target_var, torch.ones_like(n)), 0.0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """:func:`explained_variance_from_sums` of one batch.

    Args:
        values: The critic's, ``(B, T)``.
        returns: Its targets, ``(B, T)``.
        mask: Response tokens, ``(B, T)`` bool.

    Returns:
        0-d fp32; 0 where the returns do not vary.

    Raises:
        ValueError: If the shapes differ or the mask is not bool.
    """
    return explained_variance_from_sums(explained_variance_sums(values, returns, mask)).float()


@torch.no_grad()
def perplexity(logprobs: Tensor, mask: Tensor) -> Tensor:
    r"""Exponential of the mean negative log-probability over all kept tokens.

    .. math:: \exp\left(-\frac{\sum_{i:\, m_i} \log\pi(y_i)}{\sum_i m_i}\right)

    The released code divides by the token count twice, which is why the paper's axis runs from 1.00 to 1.03.

    Args:
        logprobs: ``(B, T)``.
        mask: Response tokens, ``(B, T)`` bool.

    Returns:
        0-d fp32; 1 where nothing is kept.

    Raises:
        ValueError: If the shapes differ or the mask is not bool.
    """
    return torch.exp(-masked_mean(logprobs, mask))


@dataclass(frozen=True)
class LengthStats:
    """Lengths of a batch of responses, in tokens, EOS included.

    Attributes:
        mean: 0-d fp32.
        std: Population standard deviation, 0-d fp32.
        min: 0-d int64.
        max: 0-d int64.
    """

    mean: Tensor
    std: Tensor
    min: Tensor
    max: Tensor


def length_stats(mask: Tensor) -> LengthStats:
    """Mean, spread, minimum and maximum of the response lengths.

    Args:
        mask: Response tokens, ``(B, T)`` bool, B at least 1.

    Returns:
        See :class:`LengthStats`.

    Raises:
        ValueError: If the mask is not a 2-D bool tensor with at least one row.
    """
    if mask.dtype != torch.bool or mask.dim() != 2 or not len(mask):
        raise ValueError(f"`mask` must be bool (B, T) with B at least 1, got {mask.dtype} {tuple(mask.shape)}.")
    lengths = mask.sum(1)
    wide = lengths.float()
    return LengthStats(mean=wide.mean(), std=wide.std(correction=0), min=lengths.min(), max=lengths.max())
