r"""What the win rate would be if both policies wrote equally much.

Judges like long answers. A logistic regression separates the two: with :math:`\Delta` the difference of lengths and
:math:`\sigma` its standard deviation,

.. math:: P(\text{win}) = \operatorname{sigmoid}(\theta + \phi \tanh(\Delta / \sigma)),

and the length-controlled win rate is :math:`\operatorname{sigmoid}(\theta)`: the same with :math:`\Delta = 0`. Source:
Dubois et al. 2024, "Length-Controlled AlpacaEval", eq. 1 to 3, without the term for the difficulty of each instruction,
which takes many policies to estimate.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.evaluation.intervals import Interval

_NO_WIDTH = 1e-12
_PENALTY = 10.0  # sklearn's C: keeps the length's weight finite where lengths separate wins from losses


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    r"""A win rate with the lengths taken out.

    Attributes:
        rate: Length-controlled win rate with its interval.
        length_weight: :math:`\phi`; positive where the judge prefers the longer answer.
        mean_difference: Mean difference of lengths, in the unit they came in.
    """

    rate: Interval
    length_weight: float
    mean_difference: float


def length_controlled(
    wins: Sequence[Sequence[float]],
    length_differences: Sequence[Sequence[float]],
    *,
    clusters: Sequence[Hashable] | None = None,
    num_samples: int = 400,
    confidence: float = 0.95,
    seed: int = 0,
) -> LengthControlled:
    """Fit the regression above; the interval is a percentile bootstrap over clusters, with a fit of its own per draw.

    Args:
        wins: For each of N prompts, 1, 0.5 or 0 for each of its comparisons. Every prompt weighs the same.
        length_differences: Length of the policy's response less that of its opponent's, shaped like ``wins``.
        clusters: What is resampled as one, length N; None for each prompt alone.
        num_samples: Bootstrap samples.
        confidence: Coverage of the interval, in (0, 1).
        seed: Of the bootstrap.

    Raises:
        ValueError: If shapes differ, there are no wins, or scikit-learn is not installed.
    """
    if not wins or [len(w) for w in wins] != [len(d) for d in length_differences]:
        raise ValueError("`wins` and `length_differences` must hold the same, non-empty comparisons.")
    groups: Sequence[Hashable] = range(len(wins)) if clusters is None else clusters
    if len(groups) != len(wins):
        raise ValueError(f"`wins` ({len(wins)}) and `clusters` ({len(groups)}) must have one entry per prompt.")
    places: dict[Hashable, int] = {}
    of_prompt = [places.setdefault(group, len(places)) for group in groups]
    y = torch.tensor([x for row in wins for x in row], dtype=torch.float64)
    gap = torch.tensor([x for row in length_differences for x in row], dtype=torch.float64)
    weight = torch.tensor([1 / len(row) for row in wins for _ in row], dtype=torch.float64)
    cluster = torch.tensor([of_prompt[i] for i, row in enumerate(wins) for _ in row])
    spread = float(gap.std(correction=0))
    x = torch.tanh(gap / spread) if spread > 0 else torch.zeros_like(gap)
    rate, slope = _fit(x, y, weight)
    generator = torch.Generator().manual_seed(seed)
    rates = []
    for _ in range(num_samples if len(places) > 1 else 0):
        drawn = torch.randint(len(places), (len(places),), generator=generator).bincount(minlength=len(places))
        rates.append(_fit(x, y, weight * drawn[cluster])[0])
    interval = _interval(rates, rate, confidence)
    return LengthControlled(rate=interval, length_weight=slope, mean_difference=float((gap * weight).sum() / len(wins)))


def _interval(rates: Sequence[float], rate: float, confidence: float) -> Interval:
    if not rates or max(rates) - min(rates) < _NO_WIDTH:  # resampling equal outcomes says nothing
        return Interval(float("nan"), rate, float("nan"))
    tail = (1 - confidence) / 2
    ends = torch.quantile(torch.tensor(rates, dtype=torch.float64), torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return Interval(float(ends[0]), rate, float(ends[1]))


def _fit(x: Tensor, y: Tensor, weight: Tensor) -> tuple[float, float]:
    r"""``(sigmoid(theta), phi)``. A tie is half a win and half a loss: two rows with half the weight each."""
    rows = torch.cat([x, x])[:, None]
    labels = torch.cat([torch.ones_like(y), torch.zeros_like(y)])
    weights = torch.cat([weight * y, weight * (1 - y)])
    kept = weights > 0
    if len(set(labels[kept].tolist())) < 2:
        return float(labels[kept][0]), 0.0
    model = linear_model().LogisticRegression(C=_PENALTY, solver="newton-cholesky")
    with warnings.catch_warnings():  # where its first step fails, the solver says so and takes another method
        warnings.simplefilter("ignore")
        model.fit(rows[kept].numpy(), labels[kept].numpy(), sample_weight=weights[kept].numpy())
    return float(torch.sigmoid(torch.tensor(float(model.intercept_[0])))), float(model.coef_[0, 0])


def linear_model() -> Any:
    """The module of scikit-learn.

    Raises:
        ValueError: It is not installed.
    """
    try:
        from sklearn import linear_model as found
    except ImportError:
        raise ValueError("This needs scikit-learn, of the extra `judge`: pip install 'lit-rlhf[judge]'.") from None
    return found
