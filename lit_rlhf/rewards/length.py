"""A cost on responses that are longer or shorter than wanted."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lit_rlhf.rewards.python import RewardLike
from lit_rlhf.rewards.wrapper import RewardWrapper
from lit_rlhf.types import RewardRequest


class LengthReward(RewardWrapper):
    r"""The inner score minus a cost for each token above or below a range.

    .. math:: r' = r - \min\bigl(m,\; c\,[\,(T - T_{\max})_+ + (T_{\min} - T)_+\,]\bigr)

    with :math:`T` the response tokens, EOS included. With :math:`T_{\max}` the limit less a margin and
    :math:`c = 1/\text{margin}` this is the soft overlong punishment of DAPO (Yu et al. 2025, eq. 13).

    Args:
        reward: The inner source.
        coef: Cost :math:`c` per token, not negative.
        longest: Tokens :math:`T_{\max}` that cost nothing; None sets no upper end.
        shortest: Tokens :math:`T_{\min}` below which it costs.
        max_cost: Most :math:`m` that one response can lose; None sets no bound.
        name: Used in metrics and messages; None takes the inner one's.

    Raises:
        ValueError: A negative number, an empty range, or no range at all.
    """

    def __init__(
        self,
        reward: RewardLike,
        *,
        coef: float,
        longest: int | None = None,
        shortest: int = 0,
        max_cost: float | None = None,
        name: str | None = None,
    ) -> None:
        if not coef >= 0:
            raise ValueError(f"`coef` ({coef}) must not be negative.")
        if longest is None and shortest == 0:
            raise ValueError("Give `longest`, `shortest` or both.")
        if shortest < 0 or (longest is not None and longest < shortest):
            raise ValueError(f"0 <= `shortest` ({shortest}) <= `longest` ({longest}) must hold.")
        if max_cost is not None and not max_cost >= 0:
            raise ValueError(f"`max_cost` ({max_cost}) must not be negative.")
        super().__init__(reward, name=name)
        self.coef, self.longest, self.shortest, self.max_cost = coef, longest, shortest, max_cost

    def adjust(self, scores: Tensor, request: RewardRequest) -> Tensor:
        """Scores minus the cost of each response's length."""
        length = request.rollout.response_lengths.to(scores)
        outside = (self.shortest - length).clamp_min(0)
        if self.longest is not None:
            outside = outside + (length - self.longest).clamp_min(0)
        return scores - (self.coef * outside).clamp_max(self.max_cost if self.max_cost is not None else float("inf"))

    def describe(self) -> dict[str, Any]:
        """The range and its cost, too."""
        options = {"coef": self.coef, "longest": self.longest, "shortest": self.shortest, "max_cost": self.max_cost}
        return {**super().describe(), **options}
