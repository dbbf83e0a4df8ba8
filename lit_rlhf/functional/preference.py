"""Pairwise preference: how well scores order a chosen and a rejected reply, one number a pair."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pairwise_loss(chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None) -> Tensor:
    r"""Negative log-likelihood of the preference under Bradley-Terry.

    .. math:: \ell = -\log\sigma(s_w - s_l - m)

    ``logsigmoid``, so a badly wrong pair costs its score difference and never infinity. Source: paper eq. 1-2 (printed
    there with a sign dropped); the margin is Touvron et al. 2023 (arXiv 2307.09288), eq. 2.

    Args:
        chosen: Scores of the preferred replies, ``(B,)``.
        rejected: Scores of the others, ``(B,)``.
        margin: Required score difference, ``(B,)``; None is zero.

    Returns:
        ``(B,)`` fp32, one loss a pair.

    Raises:
        ValueError: If the shapes differ.
    """
    gap = _gap(chosen, rejected)
    if margin is not None:
        gap = gap - _checked("margin", margin, gap)
    return -F.logsigmoid(gap)


def accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Whether each pair is ordered right; average it for the accuracy.

    Args:
        chosen: Scores of the preferred replies, ``(B,)``.
        rejected: Scores of the others, ``(B,)``.

    Returns:
        ``(B,)`` fp32: 1 right, 0 wrong, 0.5 tie (so that a constant model scores as a coin does).

    Raises:
        ValueError: If the shapes differ.
    """
    return (torch.sign(_gap(chosen, rejected).detach()) + 1.0) / 2.0


def _gap(chosen: Tensor, rejected: Tensor) -> Tensor:
    return chosen.float() - _checked("rejected", rejected, chosen)


def _checked(name: str, scores: Tensor, like: Tensor) -> Tensor:
    if scores.shape != like.shape:
        raise ValueError(
            f"`{name}` {tuple(scores.shape)} must have the shape of the chosen scores {tuple(like.shape)}."
        )
    return scores.float()
