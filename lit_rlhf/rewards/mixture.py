"""A weighted sum of several sources of reward."""

from __future__ import annotations

import math
from typing import Any

import torch

from lit_rlhf.models.uses import ModelUse
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rewards.python import RewardLike, as_reward
from lit_rlhf.types import RewardOutput, RewardRequest


class MixtureReward(Reward):
    r"""Weighted sum: :math:`r = \sum_i w_i r_i`, for the scores and for the per-token rewards of those that give any.

    Each part is checked on its own, so a bad number names the part it comes from.

    Args:
        rewards: The parts, at least one.
        weights: One number a part, any sign; None weighs each with 1.
        name: Used in metrics and messages.

    Raises:
        ValueError: No parts, another number of weights than parts, or a weight that is not finite.
    """

    def __init__(self, rewards: list[RewardLike], *, weights: list[float] | None = None, name: str = "mixture") -> None:
        if not rewards:
            raise ValueError("`rewards` must hold at least one reward.")
        if weights is not None and len(weights) != len(rewards):
            raise ValueError(f"`weights` ({len(weights)}) must be as many as `rewards` ({len(rewards)}).")
        if weights is not None and not all(map(math.isfinite, weights)):
            raise ValueError(f"`weights` ({weights}) must be finite.")
        self.rewards = [as_reward(reward, "rewards") for reward in rewards]
        self.weights = weights if weights is not None else [1.0] * len(rewards)
        self.name = name

    @property
    def prices_missing_eos(self) -> bool:
        """Whether any part does."""
        return any(reward.prices_missing_eos for reward in self.rewards)

    def prepare(self) -> None:
        """Every part's."""
        for reward in self.rewards:
            reward.prepare()

    def setup(self, *, device: torch.device, tokenizer: Any) -> None:
        """Set every part up."""
        for reward in self.rewards:
            reward.setup(device=device, tokenizer=tokenizer)

    def score(self, request: RewardRequest) -> RewardOutput:
        """Weighted sum of the parts' scores and per-token rewards."""
        outputs = [reward(request) for reward in self.rewards]
        scores = sum(w * o.scores for w, o in zip(self.weights, outputs, strict=True))
        per_token = [
            w * o.token_scores for w, o in zip(self.weights, outputs, strict=True) if o.token_scores is not None
        ]
        return RewardOutput(
            scores=torch.as_tensor(scores), token_scores=torch.stack(per_token).sum(0) if per_token else None
        )

    def memory_models(self) -> list[ModelUse]:
        """Every part's."""
        return [use for reward in self.rewards for use in reward.memory_models()]

    def describe(self) -> dict[str, Any]:
        """The parts and their weights."""
        return {**super().describe(), "weights": self.weights, "rewards": [r.describe() for r in self.rewards]}
