"""Pairwise preference: how well scores order a chosen and a rejected response, one number per pair.

Conventions: scores are ``(B,)``, of one shape (else ``ValueError``); so are the results, in fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_rlhf.functional.checks import check_shapes


def pairwise_loss(chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of the preference under Bradley-Terry, ``−log σ(s_w − s_l − m)``.

    By ``logsigmoid``, so that a badly wrong pair costs its score difference and never infinity. Source: paper eq. 1-2
    (printed there with a sign dropped); the margin m is Touvron et al. 2023 (arXiv 2307.09288), eq. 2.
    """
    gap = _gap(chosen, rejected)
    if margin is not None:
        check_shapes(chosen=chosen, margin=margin)
        gap = gap - margin.float()
    return -F.logsigmoid(gap)


def accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """1 for a pair ordered right, 0 for wrong, 0.5 for a tie, so that a constant model scores as a coin does."""
    return (torch.sign(_gap(chosen, rejected).detach()) + 1.0) / 2.0


def _gap(chosen: Tensor, rejected: Tensor) -> Tensor:
    check_shapes(chosen=chosen, rejected=rejected)
    return chosen.float() - rejected.float()
