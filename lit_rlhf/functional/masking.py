"""Sums and moments over the kept elements of a tensor.

One rule holds in the whole room: a mask is bool, True means *keep*, and what lies outside it is replaced by
``torch.where`` before any arithmetic, never multiplied by zero. ``0 * nan`` is ``nan``, so a product would let garbage
from padding through, in the value or (worse, silently) in the gradient alone.

Conventions: ``x`` is of any real dtype and any shape, ``mask`` of its shape; a mask that is not bool, or of another
shape, is a ``ValueError``. μ and σ² are the mean and the population variance (divisor n) of the n kept elements.
"""

from __future__ import annotations

import torch
from torch import Tensor

VARIANCE_EPS = 1e-8


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` in fp32 (fp64 stays fp64), zero outside ``mask``; so is the gradient, whatever ``x`` holds there."""
    if mask.dtype != torch.bool:
        raise ValueError(f"`mask` must be bool with True = keep, got {mask.dtype}.")
    if x.shape != mask.shape:
        raise ValueError(f"`mask` {tuple(mask.shape)} must have the shape of the values {tuple(x.shape)}.")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.where(mask, wide, torch.zeros_like(wide))


def flat_positions(mask: Tensor, width: int | None = None) -> Tensor:
    """Where ``mask (B, L)`` is True, row by row, as positions ``(N,)`` int64 in flattened rows.

    Args:
        mask: ``(B, L)``.
        width: Columns of the rows, if they have more than the mask.
    """
    row, column = mask.nonzero(as_tuple=True)
    return row * (width or mask.size(1)) + column


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """fp64 where the device has it, else fp32: squares of large fp32 numbers must not overflow."""
    return torch.float32 if device.type == "mps" else torch.float64


def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(n, μ, M₂)`` with ``M₂ = Σ (x − μ)² = n σ²``; all zero where nothing is kept.

    Triples merge: :meth:`RunningMoments.update <lit_rlhf.functional.moments.RunningMoments.update>`.

    Returns:
        Three 0-d tensors in fp64 (fp32 on devices without it).
    """
    wide = keep(x, mask).to(accumulation_dtype(x.device))
    count = mask.sum().to(wide.dtype)
    mean = wide.sum() / count.clamp(min=1)
    return count, mean, keep(wide - mean, mask).square().sum()


def masked_whiten(
    x: Tensor,
    mask: Tensor,
    *,
    shift_mean: bool = True,
    moments: tuple[Tensor | float, Tensor | float] | None = None,
) -> Tensor:
    """``(x − μ) / √(σ² + ε)``, and ``+ μ`` without ``shift_mean``, with ε = 1e-8.

    Source: paper Figure 5, detail 6.

    Args:
        x: What to whiten.
        mask: Which of it.
        shift_mean: False leaves the mean where it was.
        moments: ``(μ, σ²)``, 0-d tensors or numbers. With those of the global minibatch neither micro-batching nor the
            number of ranks changes the result; None takes those of ``x`` itself.

    Returns:
        fp32, zero outside the mask.
    """
    mean, variance = moments or _mean_and_variance(x, mask)
    kept = keep(x, mask)
    white = (kept.to(accumulation_dtype(x.device)) - mean) * (variance + VARIANCE_EPS) ** -0.5
    return keep(white if shift_mean else white + mean, mask).to(kept.dtype)


def _mean_and_variance(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    count, mean, m2 = masked_moments(x, mask)
    return mean, m2 / count.clamp(min=1)
