"""Whether the responses repeat themselves or each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_rlhf.callbacks.hooks import ExperienceLike
from lit_rlhf.callbacks.monitor import RolloutMonitor
from lit_rlhf.callbacks.response_metrics import DistinctNgrams, DistinctResponses, PrefixShare, ResponseVariety
from lit_rlhf.distributed import rank
from lit_rlhf.functional.ngrams import row_hashes

VARIETY = "rollout/variety"


class RepetitionMonitor(RolloutMonitor):
    """Distinct-n, the most frequent opening and sameness across prompts, over the rollout of all ranks.

    * ``rollout/distinct_<n>``: distinct n-grams over all n-grams. It depends on the number of tokens, so
      compare it within a run.
    * ``rollout/prefix_share``: share of responses that begin with the same ``prefix_length`` tokens.
    * ``rollout/distinct_responses``: distinct responses over all responses.
    * ``rollout/variety``: one minus the share of a response's n-grams that a response to another prompt has, averaged
      over all pairs (:func:`~lit_rlhf.functional.variety`); 1 where they have nothing in common, 0 where all are the
      same. Unlike distinct-n it sees short responses: one under n tokens is its own n-gram.

    Args:
        orders: The n of distinct-n.
        prefix_length: Tokens of the prefix.

        variety_order: The n of the variety.

    Raises:
        ValueError: If an order or the prefix length is under 1, or an order comes twice.
    """

    def __init__(self, orders: Sequence[int] = (1, 2, 4), prefix_length: int = 4, variety_order: int = 3) -> None:
        if len(set(orders)) != len(orders):
            raise ValueError(f"`orders` ({list(orders)}) must not name an order twice.")
        self.orders = tuple(orders)
        self.prefix_length = prefix_length
        self.variety_order = variety_order
        super().__init__()

    def build_metrics(self) -> Mapping[str, Metric]:
        """One metric per order, and those of whole responses."""
        distinct: dict[str, Metric] = {f"rollout/distinct_{n}": DistinctNgrams(n) for n in self.orders}
        return {
            **distinct,
            "rollout/prefix_share": PrefixShare(self.prefix_length),
            "rollout/distinct_responses": DistinctResponses(),
            VARIETY: ResponseVariety(self.variety_order),
        }

    def inputs(self, experience: ExperienceLike) -> Mapping[str, tuple[Tensor, ...]]:
        """The responses, to each of them; what they answer, to the one that compares across prompts."""
        ids, mask = experience.response_ids, experience.response_mask
        given = {name: (ids, mask) for name in self._metrics}
        return {**given, VARIETY: (ids, mask, _prompts(experience))}


def _prompts(experience: ExperienceLike) -> Tensor:
    """A number for the prompt of each response, ``(B,)``; where prompts are not given, each has one of its own."""
    ids: Tensor | None = getattr(experience, "prompt_ids", None)
    if ids is not None:
        return row_hashes(ids, experience.prompt_mask)  # type: ignore[attr-defined]
    own = torch.arange(experience.response_ids.size(0), device=experience.response_ids.device)
    return own + (rank() << 40)
