r"""Does sigmoid(r(chosen) - r(rejected)) mean what it says: the probability that the annotator prefers a response?

A pair is stored with its outcome: the preferred response always comes first, so that "the first response is preferred"
would be 1 in every row and a calibration curve over it says nothing. The order carries no information, so
each pair is presented in BOTH orders: :math:`(p, 1)` and :math:`(1 - p, 0)` with :math:`p = \sigma(\Delta r)`. The
curve over these 2N points is symmetric about (0.5, 0.5), so its upper half holds all of it: the confidence
:math:`c = \max(p, 1 - p)` against how often the reward model's favorite is the annotator's. (Drawing one order at
random has the same expectation and more noise.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torchmetrics.functional.classification import binary_calibration_error

from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.reward_report.accuracy import outcomes, rate_of
from lit_rlhf.reward_report.pairs import PairColumns

_SATURATION = 1e-12  # p stays inside (0, 1): torchmetrics gives p == 1.0 a bin of its own


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The pairs whose confidence lies in [low, high).

    Attributes:
        low: Lower edge of the confidence.
        high: Upper edge of the confidence.
        pairs: Number of pairs.
        confidence: Their mean confidence.
        accuracy: How often the reward model's favorite is the annotator's, with its interval.
    """

    low: float
    high: float
    pairs: int
    confidence: float
    accuracy: Interval


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration of sigmoid(score difference) against the labels.

    Attributes:
        ece: Expected calibration error over both orders: mean over points of abs(accuracy - confidence) of their bin.
        ece_by_chance: The mean ECE of a perfectly calibrated model with these confidences and this number of pairs
            (simulated): ECE is never 0 on a finite sample, so read ``ece`` against this.
        log_loss: Mean of -log sigmoid(difference), the training loss without margin; ln 2 = 0.693 is a coin's.
        brier: Mean of (1 - sigmoid(difference))^2; 0.25 is a coin's.
        mean_confidence: Mean of max(p, 1 - p); above the accuracy, the model is overconfident.
        bins: The reliability curve on [0.5, 1], empty bins left out.
    """

    ece: float
    ece_by_chance: float
    log_loss: float
    brier: float
    mean_confidence: float
    bins: tuple[ReliabilityBin, ...]


def calibration(
    columns: PairColumns, *, num_bins: int = 10, num_simulations: int = 200, confidence: float = 0.95, seed: int = 0
) -> Calibration:
    """Calibration with ``num_bins`` equal bins of confidence on [0.5, 1], which are twice as many on [0, 1].

    Args:
        columns: The scored pairs.
        num_bins: Bins on [0.5, 1].
        num_simulations: Simulated label sets behind ``ece_by_chance``.
        confidence: Coverage of the bins' intervals.
        seed: Seed of the simulation.

    Raises:
        ValueError: If ``num_bins`` is not positive.
    """
    if num_bins < 1:
        raise ValueError(f"`num_bins` ({num_bins}) must be at least 1.")
    gaps = columns.score_differences
    sure = torch.sigmoid(gaps.abs())
    return Calibration(
        ece=pair_calibration_error(gaps, num_bins=num_bins),
        ece_by_chance=_error_by_chance(sure, num_bins=num_bins, num_simulations=num_simulations, seed=seed),
        log_loss=float(-logsigmoid(gaps).mean()),
        brier=float(torch.sigmoid(-gaps).square().mean()),
        mean_confidence=float(sure.mean()),
        bins=_reliability_bins(columns, sure, num_bins=num_bins, confidence=confidence),
    )


def pair_calibration_error(differences: Tensor, *, num_bins: int = 10) -> float:
    """Expected calibration error of ``sigmoid(differences)``, every pair presented in both orders.

    Args:
        differences: r(chosen) - r(rejected), ``(N,)``.
        num_bins: Bins on [0.5, 1].
    """
    both = torch.cat([differences, -differences]).double()
    chances = torch.sigmoid(both).clamp(_SATURATION, 1 - _SATURATION)
    preferred = torch.cat([torch.ones_like(differences), torch.zeros_like(differences)]).long()
    return float(binary_calibration_error(chances, preferred, n_bins=2 * num_bins, norm="l1"))


def _error_by_chance(sure: Tensor, *, num_bins: int, num_simulations: int, seed: int) -> float:
    """Mean ECE when the outcomes are drawn with the stated confidences; the folded form, equal to the mirrored one."""
    generator = torch.Generator().manual_seed(seed)
    places = _places(sure, num_bins)
    total = 0.0
    for _ in range(num_simulations):
        right = (torch.rand(sure.shape, generator=generator, dtype=torch.float64) < sure).double()
        total += float(torch.zeros(num_bins, dtype=torch.float64).index_add(0, places, right - sure).abs().sum())
    return total / (num_simulations * len(sure))


def _reliability_bins(
    columns: PairColumns, sure: Tensor, *, num_bins: int, confidence: float
) -> tuple[ReliabilityBin, ...]:
    right, places, bins = outcomes(columns.score_differences), _places(sure, num_bins), []
    for place in sorted(set(places.tolist())):
        rate = rate_of(right, columns, places == place, confidence=confidence)
        low, high = (0.5 + 0.5 * edge / num_bins for edge in (place, place + 1))
        mean = float(sure[places == place].mean())
        bins.append(ReliabilityBin(low=low, high=high, pairs=rate.pairs, confidence=mean, accuracy=rate.rate))
    return tuple(bins)


def _places(sure: Tensor, num_bins: int) -> Tensor:
    """The bin on [0.5, 1] of each confidence, ``(N,)`` int64."""
    return ((sure - 0.5) * 2 * num_bins).long().clamp(0, num_bins - 1)
