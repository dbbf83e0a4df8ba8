"""Numbers that say whether training goes well; they never carry a gradient.

Whoever logs one of them calls it here, modules and monitors alike: one quantity, one formula.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_rlhf.functional.masking import accumulation_dtype, keep


def perplexity(mean_nll: float) -> float:
    """``exp(mean NLL)`` of a mean over all tokens at once, in nats; infinity above 709.78, where float64 ends.

    Infinity rather than a largest number, so that plots, ``EarlyStopping`` and the collapse rule see that there is no
    number to show. The released code divides by the token count twice: the paper's axis runs from 1.00 to 1.03.
    """
    try:
        return math.exp(mean_nll)
    except OverflowError:
        return math.inf


@torch.no_grad()
def explained_variance_sums(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """``(n, Σ R, Σ R², Σ e, Σ e²)`` with ``e = R − V``: what adds up over micro-batches and ranks.

    Args:
        values: V, the critic's, ``(B, T)``.
        returns: R, its targets, ``(B, T)``.
        mask: Response tokens, ``(B, T)`` bool.

    Returns:
        ``(5,)`` fp64 (fp32 on devices without it).
    """
    wide = accumulation_dtype(values.device)
    target = keep(returns, mask).to(wide)
    error = target - keep(values, mask).to(wide)
    count = mask.sum().to(wide)
    return torch.stack([count, target.sum(), target.square().sum(), error.sum(), error.square().sum()])


def explained_variance_from_sums(sums: Tensor) -> Tensor:
    """``1 − Var(R − V) / Var(R)``: 1 is a perfect critic, 0 one no better than a constant, negative is worse than that.

    Takes what :func:`explained_variance_sums` gives, added up. 0 where the returns do not vary.
    """
    count, target, target_sq, error, error_sq = sums.unbind()
    n = count.clamp(min=1)
    target_var = target_sq / n - (target / n).square()
    error_var = error_sq / n - (error / n).square()
    # below this the variance is the rounding error of the two terms that it is the difference of
    varies = target_var > 8 * torch.finfo(sums.dtype).eps * target_sq / n
    return torch.where(varies, 1.0 - error_var / torch.where(varies, target_var, torch.ones_like(n)), 0.0)


def shape_statistics(x: Tensor) -> dict[str, float]:
    """Moments and tail of a sample ``(N,)``, N >= 1: ``mean, std, skew, kurtosis, upper_tail``.

    ``skew = m₃ / m₂^1.5`` and ``kurtosis = m₄ / m₂² − 3``, of central moments m with divisor N.
    ``upper_tail = (U − M) / (M − L)``, U the mean of the top 5 %, M the median, L the mean of the lower half (after
    Hogg 1972): how far the best lie above the middle, in units of how far the lower half lies below. 2.6 for a normal
    distribution of any mean and width, larger with a long upper tail: the number for Appendix A's "long tail after
    collapse". Shifting or scaling ``x`` changes none of the last three; they are NaN where all of ``x`` is equal.
    """
    ordered = x.double().cpu().sort().values  # one copy, then no number waits for a device
    mean, median = ordered.mean(), ordered.quantile(0.5)
    centered = ordered - mean
    variance = centered.square().mean()
    top = max(1, round(0.05 * len(ordered)))
    above, below = ordered[-top:].mean() - median, median - ordered[: max(1, len(ordered) // 2)].mean()
    values = {
        "mean": mean,
        "std": variance.sqrt(),
        "skew": centered.pow(3).mean() / variance.pow(1.5),
        "kurtosis": centered.pow(4).mean() / variance.square() - 3.0,
        "upper_tail": above / below,
    }
    return {name: float(value) if value.isfinite() else math.nan for name, value in values.items()}
