"""What the monitors measure, as torchmetrics: state that sums or concatenates, so that all ranks compute one value."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_rlhf.functional.ngrams import ngram_hashes, prefix_hashes, response_ngrams, row_hashes, variety


class ResponseMean(Metric):
    """Mean of a quantity over the True positions of a mask, over all rows and all ranks.

    State is a float64 sum and count, so that neither the split over ranks nor the order of rows is seen in fp32.
    (torchmetrics' ``MeanMetric`` sums in fp32, and weighs by a product, which lets garbage outside the mask through.)
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor, mask: Tensor | None = None) -> None:
        """Add ``values`` (any shape) where ``mask`` (same shape, bool) is True."""
        kept = values.detach() if mask is None else values.detach()[mask]
        self.total += kept.double().sum().to(self.total.device)
        self.count += kept.numel()

    def compute(self) -> Tensor:
        """The mean, float64 scalar; NaN when nothing was added."""
        return self.total / self.count


class ResponseValues(Metric):
    """All values of all ranks, concatenated: for quantiles and moments of one number per response."""

    full_state_update = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, values: Tensor) -> None:
        """Append ``values`` (1-D, float)."""
        self.values.append(values.detach().float().flatten().to(self.device))

    def compute(self) -> Tensor:
        """``(N,)`` fp32, N = responses of all ranks."""
        return _joined(self.values, torch.float32, self.device)


class DistinctNgrams(Metric):
    """Distinct n-grams over all n-grams of the responses (distinct-n, Li et al. 2016), in ``(0, 1]``.

    Counted over the whole rollout, so it falls when responses repeat themselves and when they repeat each other.

    Args:
        order: n, at least 1.

    Raises:
        ValueError: If ``order`` is under 1.
    """

    full_state_update = False
    hashes: list[Tensor]
    count: Tensor

    def __init__(self, order: int) -> None:
        super().__init__()
        if order < 1:
            raise ValueError(f"`order` ({order}) must be at least 1.")
        self.order = order
        self.add_state("hashes", [], dist_reduce_fx="cat")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, ids: Tensor, mask: Tensor) -> None:
        """Add responses: ``ids (B, T)`` int64 with ``mask (B, T)`` bool, True first."""
        grams = ngram_hashes(ids, mask, self.order)
        self.hashes.append(torch.unique(grams).to(self.device))
        self.count += grams.numel()

    def compute(self) -> Tensor:
        """The share, float64 scalar; NaN when no response has n tokens."""
        distinct = torch.unique(_joined(self.hashes, torch.int64, self.device)).numel()
        return torch.as_tensor(distinct / self.count.double(), dtype=torch.float64)


class PrefixShare(Metric):
    """Share of responses that begin with the most frequent prefix, in ``(0, 1]``.

    Args:
        length: Tokens of the prefix; a shorter response is its own prefix.

    Raises:
        ValueError: If ``length`` is under 1.
    """

    full_state_update = False
    prefixes: list[Tensor]

    def __init__(self, length: int) -> None:
        super().__init__()
        if length < 1:
            raise ValueError(f"`length` ({length}) must be at least 1.")
        self.length = length
        self.add_state("prefixes", [], dist_reduce_fx="cat")

    def update(self, ids: Tensor, mask: Tensor) -> None:
        """Add responses: ``ids (B, T)`` int64 with ``mask (B, T)`` bool, True first."""
        self.prefixes.append(prefix_hashes(ids, mask, self.length).to(self.device))

    def compute(self) -> Tensor:
        """The share, float64 scalar; NaN when there are no responses."""
        prefixes = _joined(self.prefixes, torch.int64, self.device)
        if prefixes.numel() == 0:
            return torch.tensor(float("nan"), device=self.device)
        counts: Tensor = torch.unique(prefixes, return_counts=True)[1]
        return counts.max().double() / prefixes.numel()


class DistinctResponses(Metric):
    """Distinct responses over all responses, in ``(0, 1]``."""

    full_state_update = False
    hashes: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hashes", [], dist_reduce_fx="cat")

    def update(self, ids: Tensor, mask: Tensor) -> None:
        """Add responses: ``ids (B, T)`` int64 with ``mask (B, T)`` bool, True first."""
        self.hashes.append(row_hashes(ids, mask).to(self.device))

    def compute(self) -> Tensor:
        """The share, float64 scalar; NaN when there are no responses."""
        hashes = _joined(self.hashes, torch.int64, self.device)
        return torch.tensor(torch.unique(hashes).numel(), dtype=torch.float64) / hashes.numel()


class ResponseVariety(Metric):
    """How little the responses to different prompts have in common: :func:`~lit_rlhf.functional.variety`.

    Args:
        order: n of the n-grams.

    Raises:
        ValueError: If ``order`` is under 1.
    """

    full_state_update = False
    grams: list[Tensor]
    weights: list[Tensor]
    owners: list[Tensor]
    prompts: list[Tensor]

    def __init__(self, order: int) -> None:
        super().__init__()
        if order < 1:
            raise ValueError(f"`variety_order` ({order}) must be at least 1.")
        self.order = order
        for name in ("grams", "weights", "owners", "prompts"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, ids: Tensor, mask: Tensor, prompts: Tensor) -> None:
        """Add responses: ``ids (B, T)`` int64, ``mask (B, T)`` bool, True first, and the prompts' numbers, ``(B,)``."""
        grams, rows = response_ngrams(ids, mask, self.order)
        weights = 1 / torch.bincount(rows, minlength=ids.size(0))[rows].double()
        for name, values in {"grams": grams, "weights": weights, "owners": prompts[rows], "prompts": prompts}.items():
            getattr(self, name).append(values.to(self.device))

    def compute(self) -> Tensor:
        """The share, float64 scalar; NaN when there are not two prompts."""
        parts = {
            name: _joined(getattr(self, name), torch.int64, self.device) for name in ("grams", "owners", "prompts")
        }
        return variety(weights=_joined(self.weights, torch.float64, self.device), **parts)


def _joined(parts: list[Tensor] | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``parts`` as one tensor: torchmetrics hands a list before it synchronizes and a tensor after."""
    if isinstance(parts, Tensor):
        return parts
    return torch.cat(parts) if parts else torch.zeros(0, dtype=dtype, device=device)
