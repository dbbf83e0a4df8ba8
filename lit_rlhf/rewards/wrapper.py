"""Base of the sources that change what another source gives."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.models.uses import ModelUse
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rewards.python import RewardLike, as_reward
from lit_rlhf.types import RewardOutput, RewardRequest


class RewardWrapper(Reward):
    """A reward around another one: a subclass implements :meth:`adjust`.

    Args:
        reward: The inner source; its per-token rewards pass unchanged.
        name: Used in metrics and messages; None takes the inner one's.
    """

    def __init__(self, reward: RewardLike, *, name: str | None = None) -> None:
        self.reward = as_reward(reward, "reward")
        self.name = name if name is not None else self.reward.name

    @property
    def path(self) -> str | None:
        """Folder of the reward model inside, or None."""
        return getattr(self.reward, "path", None)

    @property
    def prices_missing_eos(self) -> bool:
        """What the inner source says."""
        return self.reward.prices_missing_eos

    def prepare(self) -> None:
        """The inner source's."""
        self.reward.prepare()

    def setup(self, *, device: torch.device, tokenizer: Any) -> None:
        """Set the inner source up."""
        self.reward.setup(device=device, tokenizer=tokenizer)

    def score(self, request: RewardRequest) -> RewardOutput:
        """The inner source's output, its scores adjusted."""
        output = self.reward(request)
        return RewardOutput(scores=self.adjust(output.scores, request), token_scores=output.token_scores)

    @abstractmethod
    def adjust(self, scores: Tensor, request: RewardRequest) -> Tensor:
        """New scores ``(B,)`` from the inner source's ``(B,)`` fp32."""

    def memory_models(self) -> list[ModelUse]:
        """The inner source's."""
        return self.reward.memory_models()

    def describe(self) -> dict[str, Any]:
        """What is inside, too."""
        return {**super().describe(), "reward": self.reward.describe()}
