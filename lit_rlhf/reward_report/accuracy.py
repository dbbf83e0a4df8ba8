"""How often the reward model agrees with the annotator: overall, by subset, by difference in length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.evaluation.intervals import Interval, proportion_interval
from lit_rlhf.reward_report.pairs import PairColumns


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A rate over pairs.

    Attributes:
        pairs: Number of pairs.
        ties: Pairs with no decision; each counts as half a success.
        rate: The rate with its interval, clustered where pairs share a dialogue or prompt.
    """

    pairs: int
    ties: int
    rate: Interval


@dataclass(frozen=True, kw_only=True)
class LengthBucket:
    """The pairs whose difference in length lies between two bounds.

    Attributes:
        low: Smallest tokens(chosen) - tokens(rejected) in the bucket.
        high: Largest one.
        accuracy: The reward model's accuracy on them.
    """

    low: int
    high: int
    accuracy: Accuracy


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts between edges.

    Attributes:
        edges: K + 1 increasing edges, symmetric about 0, which is one of them.
        counts: K counts; the two outermost bins also hold what lies beyond them.
        mean: Mean of the values.
        std: Sample standard deviation of the values, 0 for a single value.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    mean: float
    std: float


def outcomes(differences: Tensor) -> Tensor:
    """1 where positive, 0 where negative, 0.5 at exactly 0, ``(N,)`` fp64: a constant model is right half the time."""
    return (differences.sign() + 1) / 2


def rate_of(values: Tensor, columns: PairColumns, keep: Tensor | None = None, *, confidence: float) -> Accuracy:
    """The mean of outcomes with its interval.

    Args:
        values: Outcomes 0, 0.5 or 1, ``(N,)``.
        columns: The pairs, for their clusters.
        keep: Which pairs count, ``(N,)`` bool; None keeps all.
        confidence: Coverage of the interval.
    """
    picks = range(len(columns)) if keep is None else keep.nonzero().flatten().tolist()
    kept = [float(values[i]) for i in picks]
    interval = proportion_interval(kept, [columns.clusters[i] for i in picks], confidence=confidence)
    return Accuracy(pairs=len(kept), ties=sum(v == 0.5 for v in kept), rate=interval)


def pair_accuracy(columns: PairColumns, keep: Tensor | None = None, *, confidence: float = 0.95) -> Accuracy:
    """Share of pairs with r(chosen) > r(rejected), ties half."""
    return rate_of(outcomes(columns.score_differences), columns, keep, confidence=confidence)


def accuracy_by_subset(columns: PairColumns, *, confidence: float = 0.95) -> dict[str, Accuracy]:
    """Accuracy of every subset, by name."""
    return {
        name: pair_accuracy(columns, torch.tensor([s == name for s in columns.subsets]), confidence=confidence)
        for name in sorted(set(columns.subsets))
    }


def accuracy_by_length(
    columns: PairColumns, *, buckets_per_side: int = 3, confidence: float = 0.95
) -> tuple[LengthBucket, ...]:
    """Accuracy by the difference in length, chosen minus rejected.

    The pairs whose chosen response is shorter, and those whose chosen response is longer, are each cut into
    ``buckets_per_side`` buckets of about equal count; equal lengths are a bucket of their own. A model that only
    counts tokens is near 0 on the left and near 1 on the right.
    """
    gaps = columns.length_differences
    masks = [
        *_equal_count_masks(gaps, gaps < 0, buckets_per_side),
        gaps == 0,
        *_equal_count_masks(gaps, gaps > 0, buckets_per_side),
    ]
    return tuple(
        LengthBucket(
            low=int(gaps[mask].min()),
            high=int(gaps[mask].max()),
            accuracy=pair_accuracy(columns, mask, confidence=confidence),
        )
        for mask in masks
        if bool(mask.any())
    )


def difference_histogram(columns: PairColumns, *, num_bins: int = 40) -> Histogram:
    """Distribution of r(chosen) - r(rejected) (paper, Figure 2).

    The range covers 99.5 % of the absolute differences, so that one outlier does not squeeze the rest into a bin.

    Raises:
        ValueError: If ``num_bins`` is odd: 0 must be an edge, so that every bin is right or wrong as a whole.
    """
    if num_bins < 2 or num_bins % 2:
        raise ValueError(f"`num_bins` ({num_bins}) must be even and positive.")
    gaps = columns.score_differences
    reach = float(torch.quantile(gaps.abs(), 0.995)) or float(gaps.abs().max()) or 1.0
    edges = torch.linspace(-reach, reach, num_bins + 1, dtype=torch.float64)
    edges[num_bins // 2] = 0.0
    places = torch.bucketize(gaps, edges[1:-1], right=True)
    return Histogram(
        edges=tuple(edges.tolist()),
        counts=tuple(torch.bincount(places, minlength=num_bins).tolist()),
        mean=float(gaps.mean()),
        std=float(gaps.std()) if len(gaps) > 1 else 0.0,
    )


def equal_count_edges(values: Tensor, parts: int) -> Tensor:
    """Up to ``parts - 1`` distinct inner quantiles of ``values`` (fp64): the edges of buckets of about equal count."""
    levels = torch.linspace(0, 1, parts + 1, dtype=torch.float64)[1:-1]
    inner = torch.quantile(values, levels, interpolation="lower").tolist()
    return torch.tensor(sorted(set(inner)), dtype=torch.float64)


def _equal_count_masks(values: Tensor, keep: Tensor, parts: int) -> Sequence[Tensor]:
    if not bool(keep.any()):
        return []
    edges = equal_count_edges(values[keep], parts)
    places = torch.bucketize(values, edges)
    return [keep & (places == place) for place in range(len(edges) + 1)]
