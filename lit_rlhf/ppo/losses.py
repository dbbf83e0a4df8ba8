"""The losses of an update behind ABCs; a YAML `class_path` chooses them.

A loss is asked for every micro-batch and answers per token. It neither masks nor divides nor logs: the module keeps the
response tokens, sums, divides by the tokens of the global minibatch, and measures ratio, KL, drift and clip fraction
itself, so that they are right whatever the loss does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lit_rlhf.config import require
from lit_rlhf.functional.losses import clipped_policy_loss, kl_penalty_policy_loss, value_loss
from lit_rlhf.types import Experience


class PolicyLoss(ABC):
    """What the policy minimizes.

    Attributes:
        needs_reference: Whether ``taken.ref_logprobs`` is read; refused with `reference: null`.
    """

    needs_reference: bool = False

    @abstractmethod
    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, taken: Experience
    ) -> tuple[Tensor, Tensor]:
        """Loss of each token.

        All columns are ``(b, t)``: b rows of the micro-batch, t its longest response; zero outside the mask.

        Args:
            logprobs: Log-probabilities of the response tokens under the policy now, fp32, with gradient.
            old_logprobs: Denominator of the ratio (``loss.old_logprobs``), fp32. Equal to ``logprobs`` bit for bit in
                the first update of an iteration, unless it is the reference's or the sampler's.
            advantages: As configured, whitened and clipped or not, fp32.
            taken: Every other column of the same rows: ``response_mask`` (True = keep), ``ref_logprobs``, ``scores``,
                ``group``, ``extras``, ...

        Returns:
            ``(loss, clipped)``, both ``(b, t)``: what to minimize, and bool where a clip takes the gradient away
            (logged as ``update/clip_fraction``). Values outside the mask are ignored.
        """


class ClippedSurrogate(PolicyLoss):
    """PPO's clipped surrogate (paper eq. 15, detail 11).

    Args:
        clip_range: ε, in (0, ∞); None does not clip.
    """

    def __init__(self, clip_range: float | None = 0.2) -> None:
        require(clip_range is None or clip_range > 0, "clip_range", clip_range, "must be positive, or null for no clip")
        self.clip_range = clip_range

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, taken: Experience
    ) -> tuple[Tensor, Tensor]:
        """See the base class."""
        return clipped_policy_loss(logprobs, old_logprobs, advantages, clip_range=self.clip_range)


class KLPenaltySurrogate(PolicyLoss):
    """The surrogate with a penalty on the KL divergence from the old policy (paper eq. 14).

    Args:
        beta: Weight of the penalty, not negative.
    """

    def __init__(self, beta: float = 0.1) -> None:
        require(beta >= 0, "beta", beta, "must not be negative")
        self.beta = beta

    def __call__(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, taken: Experience
    ) -> tuple[Tensor, Tensor]:
        """See the base class; nothing is clipped."""
        loss = kl_penalty_policy_loss(logprobs, old_logprobs, advantages, beta=self.beta)
        return loss, torch.zeros_like(loss, dtype=torch.bool)


class CriticLoss(ABC):
    """What the critic minimizes, before ``loss.vf_coef``."""

    @abstractmethod
    def __call__(self, values: Tensor, taken: Experience) -> tuple[Tensor, Tensor]:
        """Loss of each token.

        Args:
            values: The critic's value before each response token is drawn, ``(b, t)`` fp32, with gradient.
            taken: The same rows: ``old_values``, ``returns`` (the targets), ``response_mask``, ...

        Returns:
            ``(loss, clipped)``, both ``(b, t)``; ``clipped`` is logged as ``update/value_clip_fraction``.
        """


class ClippedValueLoss(CriticLoss):
    """Half the squared error to the returns, clipped around the old values (paper detail 7).

    Args:
        clip_range: c, in units of the value, positive; None does not clip.
    """

    def __init__(self, clip_range: float | None = 0.2) -> None:
        require(clip_range is None or clip_range > 0, "clip_range", clip_range, "must be positive, or null for no clip")
        self.clip_range = clip_range

    def __call__(self, values: Tensor, taken: Experience) -> tuple[Tensor, Tensor]:
        """See the base class."""
        return value_loss(values, taken.old_values, taken.returns, clip_range=self.clip_range)
