"""Win, tie and lose rates of one policy against another, with intervals clustered by what belongs together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch

from lit_rlhf.evaluation.intervals import Interval, cluster_bootstrap, cluster_sums, wilson_interval

RESAMPLES = 2000
_NO_WIDTH = 1e-12
Outcomes = Sequence[str]
"""What was judged of one prompt: "win", "tie" or "lose" for each opponent's response."""


@dataclass(frozen=True)
class WinRate:
    """A comparison over a set of prompts.

    Attributes:
        win: Share of comparisons won, in [0, 1].
        tie: Share of ties.
        lose: Share lost.
        rate: Win rate with ties counted half, in [0, 1].
        low: Lower end of its interval.
        high: Upper end of its interval.
        prompts: Number of prompts compared.
        clusters: Number of clusters that were resampled.
    """

    win: float
    tie: float
    lose: float
    rate: float
    low: float
    high: float
    prompts: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.rate:.3f} [{self.low:.3f}, {self.high:.3f}]"


def shares(outcomes: Outcomes) -> tuple[float, float, float]:
    """Shares of wins, ties and losses among the outcomes of one prompt."""
    wins = sum(outcome == "win" for outcome in outcomes) / len(outcomes)
    losses = sum(outcome == "lose" for outcome in outcomes) / len(outcomes)
    return wins, 1.0 - wins - losses, losses


def half_ties(outcomes: Sequence[Outcomes]) -> list[float]:
    """Wins plus half the ties of each prompt, in [0, 1]."""
    return [win + 0.5 * tie for win, tie, _ in map(shares, outcomes)]


def win_rate(
    outcomes: Sequence[Outcomes],
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> WinRate:
    """Win rate of one policy's responses against another's.

    Args:
        outcomes: For each of N prompts the outcomes of its comparisons, at least one.
        clusters: What is resampled as one, length N: prompts about the same thing are not independent. None makes
            each prompt its own cluster.
        confidence: Coverage of the interval, in (0, 1).
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Returns:
        The rates over all prompts, each prompt weighing the same. The interval is the percentile bootstrap's; where
        several clusters all have the same rate, it would claim certainty: Wilson's, one trial a cluster, stands in.

    Raises:
        ValueError: If nothing is compared or the lengths differ.
    """
    groups = _checked(outcomes, clusters)
    parts = [shares(prompt) for prompt in outcomes]
    halves = half_ties(outcomes)
    interval = cluster_bootstrap(halves, groups, num_samples=resamples, confidence=confidence, seed=seed)
    if interval.high - interval.low < _NO_WIDTH:
        interval = _of_equal_clusters(halves, groups, confidence)
    win, tie, lose = (sum(part[i] for part in parts) / len(parts) for i in range(3))
    return WinRate(win, tie, lose, win + 0.5 * tie, interval.low, interval.high, len(parts), len(set(groups)))


def _of_equal_clusters(halves: Sequence[float], groups: Sequence[Hashable], confidence: float) -> Interval:
    clusters = len(set(groups))
    rate = sum(halves) / len(halves)
    return wilson_interval(rate * clusters, clusters, confidence=confidence)


def win_rates_by(
    labels: Sequence[str], outcomes: Sequence[Outcomes], *, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> Mapping[str, WinRate]:
    """The win rate over all prompts (``"all"``) and over those of each label, labels in the order of their appearance.

    Args:
        labels: The label of each prompt, length N, e.g. "helpful" or "harmless".
        outcomes: See :func:`win_rate`.
        clusters: See :func:`win_rate`.
        seed: See :func:`win_rate`.

    Raises:
        ValueError: If nothing is compared or the lengths differ.
    """
    groups = _checked(outcomes, clusters)
    return {
        label: win_rate([outcomes[i] for i in rows], clusters=[groups[i] for i in rows], seed=seed)
        for label, rows in rows_by(labels, len(outcomes)).items()
    }


def rows_by(labels: Sequence[str], number: int) -> dict[str, list[int]]:
    """The rows of ``"all"`` and of each label.

    Raises:
        ValueError: If there are not ``number`` labels.
    """
    if len(labels) != number:
        raise ValueError(f"`labels` ({len(labels)}) and `outcomes` ({number}) must have one entry per prompt.")
    groups: dict[str, list[int]] = {"all": list(range(number))}
    for row, label in enumerate(labels):
        if label != "all":
            groups.setdefault(label, []).append(row)
    return groups


def p_value(
    outcomes: Sequence[Outcomes], *, clusters: Sequence[Hashable] | None = None, draws: int = 10_000, seed: int = 0
) -> float:
    r"""How often a difference at least as large comes from two equally good policies; two-sided.

    With equally good policies every cluster's sum :math:`s_c = \sum (y - 1/2)` is as likely to have the other sign, so
    signs are drawn: :math:`p = (1 + \#\{|\sum \pm s_c| \ge |\sum s_c|\}) / (1 + draws)`. Source: Dwass 1957; Phipson
    and Smyth 2010 for the ones.

    Args:
        outcomes: See :func:`win_rate`.
        clusters: See :func:`win_rate`.
        draws: Signs drawn; the smallest possible p-value is ``1 / (1 + draws)``.
        seed: Of the draws.

    Raises:
        ValueError: If nothing is compared or the lengths differ.
    """
    groups = _checked(outcomes, clusters)
    sums, _ = cluster_sums([half - 0.5 for half in half_ties(outcomes)], groups)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (draws, len(sums)), generator=generator, dtype=torch.int8).double() * 2 - 1
    extreme = (signs @ sums).abs() >= sums.sum().abs() - 1e-9
    return (1 + int(extreme.sum())) / (1 + draws)


def _checked(outcomes: Sequence[Outcomes], clusters: Sequence[Hashable] | None) -> list[Hashable]:
    """The cluster of each prompt."""
    groups: list[Hashable] = list(range(len(outcomes))) if clusters is None else list(clusters)
    if not outcomes:
        raise ValueError("`outcomes` is empty: there is nothing to compare.")
    if len(groups) != len(outcomes):
        raise ValueError(f"`outcomes` ({len(outcomes)}) and `clusters` ({len(groups)}) must have one entry per prompt.")
    if not all(len(prompt) for prompt in outcomes):
        raise ValueError("every prompt needs at least one outcome in `outcomes`.")
    return groups
