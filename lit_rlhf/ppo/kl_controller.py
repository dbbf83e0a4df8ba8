"""Controllers of the KL coefficient: fixed (the default) and adaptive; their state is part of a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod


class KLController(ABC):
    """Holds the coefficient of the token-level KL penalty (eta in paper eq. 19).

    Attributes:
        value: The coefficient used by the next iteration.
    """

    value: float

    @abstractmethod
    def update(self, kl: float, num_responses: int) -> None:
        """Learn from one iteration.

        Args:
            kl: Mean over responses of the summed k1 estimate, nats a sequence, over all ranks.
            num_responses: Responses of the iteration, over all ranks.
        """

    def raise_by(self, factor: float) -> None:
        """Multiply the coefficient, as a monitor does when it sees a collapse coming.

        Raises:
            ValueError: If ``factor`` is not positive.
        """
        if factor <= 0:
            raise ValueError(f"`factor` ({factor}) must be positive.")
        self.value *= factor

    @property
    def without_penalty(self) -> bool:
        """Whether the coefficient is 0 for good, so that no reference is needed; False unless a subclass knows."""
        return False

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take the state of :meth:`state_dict`."""
        self.value = state["value"]


class FixedKL(KLController):
    """A constant coefficient.

    Args:
        coef: eta of paper eq. 19; 0 switches the penalty off.

    Raises:
        ValueError: If ``coef`` is negative.
    """

    def __init__(self, coef: float = 0.05) -> None:
        if coef < 0:
            raise ValueError(f"`coef` ({coef}) must not be negative.")
        self.value = coef

    def update(self, kl: float, num_responses: int) -> None:
        """Nothing to learn."""

    @property
    def without_penalty(self) -> bool:
        """Whether the coefficient is 0."""
        return self.value == 0


class AdaptiveKL(KLController):
    r"""Proportional control toward a target KL (Ziegler et al. 2019, section 2.2).

    .. math:: e = \operatorname{clip}(KL / KL_{target} - 1, -0.2, 0.2), \quad
              \beta \leftarrow \beta (1 + e \cdot n / horizon)

    Args:
        coef: Coefficient of the first iteration, positive.
        target: KL aimed at, nats a sequence, positive.
        horizon: Responses over which a full error moves the coefficient by 20 %, positive.

    Raises:
        ValueError: If an argument is not positive.
    """

    def __init__(self, coef: float = 0.05, target: float = 6.0, horizon: float = 10_000.0) -> None:
        for name, given in (("coef", coef), ("target", target), ("horizon", horizon)):
            if given <= 0:
                raise ValueError(f"`{name}` ({given}) must be positive.")
        self.value, self.target, self.horizon = coef, target, horizon

    def update(self, kl: float, num_responses: int) -> None:
        """See the class."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.value *= 1.0 + error * num_responses / self.horizon
