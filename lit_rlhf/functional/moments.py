"""Running mean and spread of the raw scores, exact over batches and ranks (Chan's parallel update).

Python floats, not tensors: a precision plugin would cast a buffer to bf16, and a checkpoint stores three numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

# fp32 scores cannot show a spread below about 1e-7 of their size: dividing by it would amplify rounding errors
RESOLUTION = 1e-7


@dataclass(frozen=True)
class RunningMoments:
    """Count n, mean μ and sum of squared deviations M₂ of all numbers seen so far.

    Two sets a and b merge (Chan, Golub and LeVeque 1979, eq. 2.1) as

    ``δ = μ_b − μ_a``, ``n = n_a + n_b``, ``μ = μ_a + δ n_b / n``, ``M₂ = M₂_a + M₂_b + δ² n_a n_b / n``

    and the order of merging changes nothing beyond rounding. The paper normalizes a score with moments that already
    include its own batch (eq. 18), so update first, then shape. Moments are never changed in place.

    Attributes:
        count: How many numbers.
        mean: Their mean.
        m2: The sum of their squared deviations from the mean.
    """

    count: float = 0.0
    mean: float = 0.0
    m2: float = 0.0

    def update(self, count: float, mean: float, m2: float) -> RunningMoments:
        """These moments merged with those of another set; one of size zero changes nothing.

        Raises:
            ValueError: If a number is not finite, or ``count`` or ``m2`` is negative.
        """
        if not all(map(math.isfinite, (count, mean, m2))) or count < 0 or m2 < 0:
            raise ValueError(
                f"`count` ({count}), `mean` ({mean}) and `m2` ({m2}) must be finite, `count` and `m2` not negative."
            )
        if count == 0:
            return self
        total = self.count + count
        delta = mean - self.mean
        return RunningMoments(
            count=total,
            mean=self.mean + delta * (count / total),
            m2=self.m2 + m2 + delta * delta * (self.count * count / total),
        )

    def update_from(self, x: Tensor) -> RunningMoments:
        """These moments merged with those of the elements of ``x``, of any shape and real dtype.

        ``x`` is this process's numbers only. Over ranks, :meth:`update` with every rank's triple instead.
        """
        if x.numel() == 0:
            return self
        wide = x.detach().cpu().to(torch.float64)
        mean = wide.mean()
        return self.update(float(wide.numel()), mean.item(), (wide - mean).square().sum().item())

    @property
    def std(self) -> float:
        """Sample standard deviation; 1.0 before two numbers were seen that differ by more than fp32 can resolve."""
        if self.count < 2:
            return 1.0
        std = math.sqrt(self.m2 / (self.count - 1.0))
        return std if std > RESOLUTION * max(1.0, abs(self.mean)) else 1.0

    def state_dict(self) -> dict[str, float]:
        """The three numbers, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, float]) -> RunningMoments:
        """Moments from :meth:`state_dict`'s result."""
        return cls(count=float(state["count"]), mean=float(state["mean"]), m2=float(state["m2"]))
