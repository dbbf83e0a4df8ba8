"""Sums, means and moments over the kept elements of a tensor.

One rule holds in the whole room: a mask is bool and True means *keep*, and what lies outside it is replaced by
``torch.where`` before any arithmetic, never multiplied by zero. ``0 * nan`` is ``nan``, so a product would let garbage
from padding through, in the value or (worse, silently) in the gradient alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

VARIANCE_EPS = 1e-8


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """``x`` in fp32 (fp64 stays fp64) with zeros outside ``mask``.

    Args:
        x: Any real dtype, any shape.
        mask: Bool, the shape of ``x``.

    Returns:
        The shape of ``x``; gradients outside the mask are exactly zero, whatever ``x`` holds there.

    Raises:
        ValueError: If the mask is not bool or the shapes differ.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"`mask` must be bool with True = keep, got {mask.dtype}.")
    if x.shape != mask.shape:
        raise ValueError(f"`mask` {tuple(mask.shape)} must have the shape of the values {tuple(x.shape)}.")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.where(mask, wide, torch.zeros_like(wide))


def flat_positions(mask: Tensor, width: int | None = None) -> Tensor:
    """Where a mask is True, as positions in flattened rows.

    Args:
        mask: Bool, ``(B, L)``.
        width: Columns of the rows, if they have more than the mask.

    Returns:
        ``(N,)`` int64, row by row.
    """
    row, column = mask.nonzero(as_tuple=True)
    return row * (width or mask.size(1)) + column


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """fp64 where the device has it, else fp32: squares of large fp32 numbers must not overflow."""
    return torch.float32 if device.type == "mps" else torch.float64


def masked_sum(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    r"""Sum of the kept elements.

    .. math:: \sum_{i:\, m_i} x_i

    Args:
        x: Any real dtype, any shape.
        mask: Bool, the shape of ``x``, True = keep.
        dim: Dimensions to reduce; None reduces all of them.

    Returns:
        fp32, ``x`` without ``dim``; zero where nothing is kept.

    Raises:
        ValueError: If the mask is not bool or the shapes differ.
    """
    kept = keep(x, mask)
    return kept.sum() if dim is None else kept.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    r"""Mean of the kept elements, zero where nothing is kept.

    .. math:: \frac{\sum_{i:\, m_i} x_i}{\max(1, \sum_i m_i)}

    Args:
        x: Any real dtype, any shape.
        mask: Bool, the shape of ``x``, True = keep.
        dim: Dimensions to reduce; None reduces all of them.

    Returns:
        fp32, ``x`` without ``dim``.

    Raises:
        ValueError: If the mask is not bool or the shapes differ.
    """
    count = mask.sum() if dim is None else mask.sum(dim)
    return masked_sum(x, mask, dim) / count.clamp(min=1)


def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Count, mean and sum of squared deviations of the kept elements: what ranks exchange and merge.

    .. math:: n = \sum_i m_i, \quad \mu = \frac1n \sum_{i:\, m_i} x_i, \quad M_2 = \sum_{i:\, m_i} (x_i - \mu)^2

    Two triples merge by Chan, Golub and LeVeque 1979, eq. 2.1 (:meth:`RunningMoments.update`); the population variance
    is ``m2 / count``.

    Args:
        x: Any real dtype, any shape.
        mask: Bool, the shape of ``x``, True = keep.

    Returns:
        ``(count, mean, m2)``, three 0-d tensors in fp64 (fp32 on devices without it); all zero where nothing is kept.

    Raises:
        ValueError: If the mask is not bool or the shapes differ.
    """
    wide = keep(x, mask).to(accumulation_dtype(x.device))
    count = mask.sum().to(wide.dtype)
    mean = wide.sum() / count.clamp(min=1)
    return count, mean, keep(wide - mean, mask).square().sum()


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    r"""Population variance of the kept elements, zero where fewer than two are kept.

    .. math:: \frac1n \sum_{i:\, m_i} (x_i - \mu)^2

    Args:
        x: Any real dtype, any shape.
        mask: Bool, the shape of ``x``, True = keep.

    Returns:
        0-d, fp64 (fp32 on devices without it).

    Raises:
        ValueError: If the mask is not bool or the shapes differ.
    """
    count, _, m2 = masked_moments(x, mask)
    return m2 / count.clamp(min=1)


def masked_whiten(
    x: Tensor,
    mask: Tensor,
    *,
    shift_mean: bool = True,
    moments: tuple[Tensor | float, Tensor | float] | None = None,
) -> Tensor:
    r"""Scale the kept elements to unit variance and, with ``shift_mean``, to zero mean.

    .. math:: \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \quad (+\ \mu \text{ without } \texttt{shift\_mean})

    with the population variance and :math:`\epsilon` = 1e-8. Pass the ``moments`` of the global minibatch and neither
    micro-batching nor the number of ranks changes the result. Source: paper Figure 5, detail 6.

    Args:
        x: Any real dtype, any shape.
        mask: Bool, the shape of ``x``, True = keep.
        shift_mean: False leaves the mean where it was.
        moments: ``(mean, variance)``, 0-d tensors or numbers; None takes those of ``x`` itself.

    Returns:
        fp32, the shape of ``x``, zero outside the mask.

    Raises:
        ValueError: If the mask is not bool or the shapes differ.
    """
    mean, variance = moments or (masked_moments(x, mask)[1], masked_var(x, mask))
    kept = keep(x, mask)
    white = (kept.to(accumulation_dtype(x.device)) - mean) * (variance + VARIANCE_EPS) ** -0.5
    return keep(white if shift_mean else white + mean, mask).to(kept.dtype)
