r"""How sure is a rate or a mean: Wilson's interval for independent trials, the cluster bootstrap for dependent ones.

Several responses to one prompt are not independent: a prompt that is easy for one sample is easy for the next. An
interval that treats them as independent is too narrow. The cluster bootstrap draws whole prompts, with replacement,
and so keeps what belongs together together.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

_DRAWS_AT_ONCE = 1 << 22  # indices held at a time: 32 MiB of int64, whatever the number of clusters


class Interval(NamedTuple):
    """A confidence interval around an estimate.

    Attributes:
        low: Lower end; NaN where the data cannot tell (no trial, or a single cluster).
        mean: The estimate.
        high: Upper end; NaN where the data cannot tell.
    """

    low: float
    mean: float
    high: float

    @property
    def is_defined(self) -> bool:
        """Whether both ends are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def wilson_interval(successes: float, trials: int, *, confidence: float = 0.95) -> Interval:
    r"""Wilson's score interval for a proportion of independent trials.

    .. math:: \frac{\hat p + z^2/2n \pm z \sqrt{\hat p (1 - \hat p)/n + z^2/4n^2}}{1 + z^2/n}

    Unlike :math:`\hat p \pm z\,s` it stays inside [0, 1] and keeps its width when all trials agree. Source: Wilson
    1927; Brown, Cai and DasGupta 2001 for its coverage.

    Args:
        successes: Number of successes in ``[0, trials]``; a tie may count as half a success.
        trials: Number of independent trials; 0 gives an interval of NaN.
        confidence: Coverage aimed at, in (0, 1).

    Raises:
        ValueError: If ``successes`` is outside ``[0, trials]`` or ``confidence`` outside (0, 1).
    """
    _check_confidence(confidence)
    if not 0 <= successes <= trials:
        raise ValueError(f"`successes` ({successes}) must lie in [0, `trials`] = [0, {trials}].")
    if trials == 0:
        return Interval(math.nan, math.nan, math.nan)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, spread = successes / trials, z * z / trials
    center = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / trials + spread / (4 * trials))
    return Interval(max(0.0, center - half), rate, min(1.0, center + half))


def bootstrap(values: Sequence[float], *, num_samples: int = 2000, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean of independent values.

    The same as :func:`cluster_bootstrap` with every value a cluster of its own.
    """
    clusters = range(len(values))
    return cluster_bootstrap(values, clusters, num_samples=num_samples, confidence=confidence, seed=seed)


def cluster_bootstrap(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    num_samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    r"""Percentile bootstrap of the mean, resampling whole clusters.

    With K clusters of sums :math:`s_k` and sizes :math:`n_k`, one bootstrap sample draws K clusters with replacement
    and has the mean :math:`\sum s_k / \sum n_k`; the interval's ends are quantiles of ``num_samples`` such means.
    Every value has the same weight, so a prompt with more responses weighs more. Source: Davison and Hinkley 1997,
    section 3.8; Miller 2024, "Adding Error Bars to Evals", for clusters in model evaluation.

    Args:
        values: The N measurements, e.g. 1 for a win, 0.5 for a tie, 0 for a loss.
        clusters: What each value belongs to, length N, e.g. the prompt.
        num_samples: Number of bootstrap samples.
        confidence: Coverage aimed at, in (0, 1). With fewer than about 20 clusters the true coverage is lower.
        seed: Seed of the resampling; the caller's random state is untouched.

    Returns:
        The interval; its ends are NaN with a single cluster, which says nothing of the spread between clusters.

    Raises:
        ValueError: If the lengths differ, there are no values, one is not finite, or an option is out of range.
    """
    _check_confidence(confidence)
    if num_samples < 1:
        raise ValueError(f"`num_samples` ({num_samples}) must be at least 1.")
    return _bootstrap_ratio(*cluster_sums(values, clusters), num_samples=num_samples, confidence=confidence, seed=seed)


def ratio_bootstrap(
    numerators: Sequence[float],
    denominators: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    num_samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    r"""Percentile bootstrap of :math:`\sum x_i / \sum n_i`, resampling whole clusters.

    A mean per token, from sums per document: ``numerators`` are the sums, ``denominators`` the tokens. Of two models
    on the same documents, the sums' differences give the paired interval of the difference.

    Args:
        numerators: :math:`x_i`, length N.
        denominators: :math:`n_i`, length N, with a positive sum in every cluster.
        clusters: What each belongs to, length N, e.g. the document.
        num_samples: See :func:`cluster_bootstrap`.
        confidence: See :func:`cluster_bootstrap`.
        seed: See :func:`cluster_bootstrap`.

    Raises:
        ValueError: As :func:`cluster_bootstrap`, or where a cluster's denominator is not positive.
    """
    _check_confidence(confidence)
    sums, _ = cluster_sums(numerators, clusters)
    sizes, _ = cluster_sums(denominators, clusters)
    if not bool((sizes > 0).all()):
        raise ValueError("`denominators` must have a positive sum in every cluster.")
    return _bootstrap_ratio(sums, sizes, num_samples=num_samples, confidence=confidence, seed=seed)


def _bootstrap_ratio(sums: Tensor, sizes: Tensor, *, num_samples: int, confidence: float, seed: int) -> Interval:
    mean = float(sums.sum() / sizes.sum())
    if len(sums) < 2:
        return Interval(math.nan, mean, math.nan)
    means = torch.cat(list(_resampled_means(sums, sizes, num_samples=num_samples, seed=seed)))
    tail = (1 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(low, mean, high)


def proportion_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of a rate whose trials may share clusters: Wilson's if they do not, the cluster bootstrap if they do.

    Where every cluster has the same rate there is nothing to resample and the bootstrap would claim certainty;
    Wilson's interval with one trial a cluster stands in.

    Args:
        values: Outcomes in [0, 1]: 1 success, 0 failure, 0.5 a tie. None at all gives an interval of NaN.
        clusters: What each outcome belongs to; None when the outcomes are independent.
        confidence: Coverage aimed at, in (0, 1).
        seed: Seed of the bootstrap.

    Raises:
        ValueError: As :func:`wilson_interval` and :func:`cluster_bootstrap`.
    """
    names: Sequence[Hashable] = range(len(values)) if clusters is None else clusters
    if len(values) == 0 or len(set(names)) == len(values):
        return wilson_interval(sum(values), len(values), confidence=confidence)
    sums, sizes = cluster_sums(values, names)
    rates = sums / sizes
    if bool((rates == rates[0]).all()):
        return wilson_interval(float(rates.sum()), len(rates), confidence=confidence)
    return cluster_bootstrap(values, names, confidence=confidence, seed=seed)


def cluster_sums(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
    """Sum and size of each cluster, both ``(K,)`` fp64, in order of first appearance."""
    if len(values) != len(clusters):
        raise ValueError(f"`values` ({len(values)}) and `clusters` ({len(clusters)}) must have the same length.")
    if len(values) == 0:
        raise ValueError("`values` must hold at least one number.")
    x = torch.as_tensor(values, dtype=torch.float64)
    if not bool(x.isfinite().all()):
        position = int((~x.isfinite()).nonzero()[0])
        raise ValueError(f"`values` must be finite; number {position} is {float(x[position])}.")
    places: dict[Hashable, int] = {}
    index = torch.tensor([places.setdefault(c, len(places)) for c in clusters])
    zeros = torch.zeros(len(places), dtype=torch.float64)
    return zeros.index_add(0, index, x), zeros.index_add(0, index, torch.ones_like(x))


def _resampled_means(sums: Tensor, sizes: Tensor, *, num_samples: int, seed: int) -> Iterator[Tensor]:
    """Means of bootstrap samples, a block at a time so that memory does not grow with clusters x samples."""
    generator = torch.Generator().manual_seed(seed)
    block = max(1, _DRAWS_AT_ONCE // len(sums))
    for start in range(0, num_samples, block):
        shape = (min(block, num_samples - start), len(sums))
        draws = torch.randint(len(sums), shape, generator=generator)
        yield sums[draws].sum(1) / sizes[draws].sum(1)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` ({confidence}) must lie strictly between 0 and 1.")
