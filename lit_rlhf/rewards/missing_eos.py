"""A cost on responses that the length limit cut before their EOS."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from lit_rlhf.functional.shaping import penalize_missing_eos
from lit_rlhf.rewards.python import RewardLike
from lit_rlhf.rewards.wrapper import RewardWrapper
from lit_rlhf.types import RewardRequest


class MissingEOSReward(RewardWrapper):
    """The inner score, lowered or replaced where the response has no EOS.

    A reward model has only seen whole responses; what it says of one that was cut means little.

    Args:
        reward: The inner source.
        penalty: Subtracted from the score, not negative.
        replacement: Takes the place of the score. Exactly one of the two must be given.
        name: Used in metrics and messages; None takes the inner one's.

    Raises:
        ValueError: None or both are given, one is not finite, or the penalty is negative.
    """

    def __init__(
        self,
        reward: RewardLike,
        *,
        penalty: float | None = None,
        replacement: float | None = None,
        name: str | None = None,
    ) -> None:
        if (penalty is None) == (replacement is None):
            raise ValueError(f"Give `penalty` ({penalty}) or `replacement` ({replacement}), exactly one.")
        if penalty is not None and not penalty >= 0:
            raise ValueError(f"`penalty` ({penalty}) is subtracted and must not be negative.")
        if not math.isfinite(penalty or replacement or 0.0):
            raise ValueError(f"`penalty` ({penalty}) or `replacement` ({replacement}) must be finite.")
        super().__init__(reward, name=name)
        self.penalty, self.replacement = penalty, replacement

    @property
    def prices_missing_eos(self) -> bool:
        """It does."""
        return True

    def adjust(self, scores: Tensor, request: RewardRequest) -> Tensor:
        """Scores, changed where the response was cut."""
        ended = request.rollout.ended.to(scores.device)
        return penalize_missing_eos(scores, ended, penalty=self.penalty, replacement=self.replacement)

    def describe(self) -> dict[str, Any]:
        """What a cut response costs, too."""
        return {**super().describe(), "penalty": self.penalty, "replacement": self.replacement}
