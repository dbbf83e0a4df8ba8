"""Advantage estimators behind one ABC; a YAML `class_path` chooses one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.functional.advantages import generalized_advantage_estimate, group_normalized, leave_one_out
from lit_rlhf.types import ScoredRollout


class AdvantageEstimator(ABC):
    """Turns token rewards into advantages and the critic's targets.

    Attributes:
        needs_critic: Whether ``old_values`` are used; when False no critic is loaded.
        group_size: Responses sampled for each prompt, consecutive rows of the rollout.
    """

    needs_critic: bool = True
    group_size: int = 1

    @abstractmethod
    def estimate(self, scored: ScoredRollout, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """``(advantages, returns)``, each ``(B, T)`` fp32 and zero outside the mask, from ``rewards`` ``(B, T)``."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of it: tensors and plain values. Nothing by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027  # most have no state
        """Take the state of :meth:`state_dict`."""


class GAE(AdvantageEstimator):
    """Generalized advantage estimation (paper eq. 9; Schulman et al. 2016).

    Args:
        gamma: Discount, in (0, 1].
        gae_lambda: Trade of bias (0) against variance (1); the paper's text says 0.9, its release 0.95.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(self, gamma: float = 1.0, gae_lambda: float = 0.95) -> None:
        if not 0 < gamma <= 1:
            raise ValueError(f"`gamma` ({gamma}) must be in (0, 1].")
        if not 0 <= gae_lambda <= 1:
            raise ValueError(f"`gae_lambda` ({gae_lambda}) must be in [0, 1].")
        self.gamma, self.gae_lambda = gamma, gae_lambda

    def estimate(self, scored: ScoredRollout, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        return generalized_advantage_estimate(
            rewards, scored.old_values, scored.response_mask, gamma=self.gamma, gae_lambda=self.gae_lambda
        )


class _GroupEstimator(AdvantageEstimator):
    """Critic-free: a response's advantage is its total reward against the other responses to the same prompt."""

    needs_critic = False

    def __init__(self, group_size: int = 4) -> None:
        if group_size < 2:
            raise ValueError(f"`group_size` ({group_size}) must be at least 2: one response has nothing beside it.")
        self.group_size = group_size

    def estimate(self, scored: ScoredRollout, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class. The same advantage for every token of a response."""
        mask = scored.response_mask
        totals = torch.where(mask, rewards, 0.0).sum(1)
        advantages = torch.where(mask, self._advantages(totals)[:, None], 0.0)
        return advantages, torch.where(mask, totals[:, None], 0.0)

    @abstractmethod
    def _advantages(self, totals: Tensor) -> Tensor:
        """Advantage of each response, ``(B,)``, from its total reward ``(B,)``."""


class GroupNormalized(_GroupEstimator):
    """Total reward minus the group's mean, over its standard deviation (Shao et al. 2024, GRPO).

    Args:
        group_size: Responses for each prompt, at least 2.
        scale_by_std: Whether to divide by the group's standard deviation.
    """

    def __init__(self, group_size: int = 4, *, scale_by_std: bool = True) -> None:
        super().__init__(group_size)
        self.scale_by_std = scale_by_std

    def _advantages(self, totals: Tensor) -> Tensor:
        return group_normalized(totals, self.group_size, scale_by_std=self.scale_by_std)


class LeaveOneOut(_GroupEstimator):
    """Total reward minus the mean of the *other* responses of the group (Ahmadian et al. 2024, RLOO)."""

    def _advantages(self, totals: Tensor) -> Tensor:
        return leave_one_out(totals, self.group_size)
