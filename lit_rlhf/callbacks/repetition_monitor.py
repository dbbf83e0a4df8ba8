"""Whether the responses repeat themselves or each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torchmetrics import Metric

from lit_rlhf.callbacks.hooks import ExperienceLike
from lit_rlhf.callbacks.monitor import RolloutMonitor
from lit_rlhf.callbacks.response_metrics import DistinctNgrams, PrefixShare


class RepetitionMonitor(RolloutMonitor):
    """Distinct-n and the most frequent opening, over the rollout of all ranks.

    * ``rollout/distinct_<n>``: distinct n-grams over all n-grams. It depends on the number of tokens, so
      compare it within a run.
    * ``rollout/prefix_share``: share of responses that begin with the same ``prefix_length`` tokens.

    Args:
        orders: The n of distinct-n.
        prefix_length: Tokens of the prefix.

    Raises:
        ValueError: If an order or the prefix length is under 1, or an order comes twice.
    """

    def __init__(self, orders: Sequence[int] = (1, 2, 4), prefix_length: int = 4) -> None:
        if len(set(orders)) != len(orders):
            raise ValueError(f"`orders` ({list(orders)}) must not name an order twice.")
        self.orders = tuple(orders)
        self.prefix_length = prefix_length
        super().__init__()

    def build_metrics(self) -> Mapping[str, Metric]:
        """One metric per order, and the prefix share."""
        distinct: dict[str, Metric] = {f"rollout/distinct_{n}": DistinctNgrams(n) for n in self.orders}
        return {**distinct, "rollout/prefix_share": PrefixShare(self.prefix_length)}

    def inputs(self, experience: ExperienceLike) -> Mapping[str, tuple[Tensor, ...]]:
        """The responses, to each of them."""
        return {name: (experience.response_ids, experience.response_mask) for name in self._metrics}
