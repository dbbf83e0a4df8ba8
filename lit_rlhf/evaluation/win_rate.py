"""Win, tie and lose rates of one model against another by a judge's scores, with intervals clustered by prompt."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from lit_rlhf.evaluation.intervals import cluster_bootstrap

RESAMPLES = 2000


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


def compare(score: float, baselines: Sequence[float], *, tie_margin: float) -> tuple[float, float, float]:
    """Shares of ``baselines`` that ``score`` beats, ties with (differs by at most ``tie_margin``) and loses to."""
    wins = sum(score > other + tie_margin for other in baselines) / len(baselines)
    losses = sum(score < other - tie_margin for other in baselines) / len(baselines)
    return wins, 1.0 - wins - losses, losses


def win_rate(
    scores: Sequence[float],
    baseline_scores: Sequence[Sequence[float]],
    *,
    clusters: Sequence[Hashable] | None = None,
    tie_margin: float = 0.08,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> WinRate:
    """Win rate of one response a prompt against several baseline responses to the same prompt.

    Args:
        scores: The judge's score of the model's response to each prompt, length N.
        baseline_scores: For each prompt the scores of the baseline's samples, N x at least 1.
        clusters: What is resampled as one, length N: prompts about the same thing are not independent. None makes
            each prompt its own cluster.
        tie_margin: Scores that differ by at most this tie; half a tie counts as a win.
        confidence: Coverage of the interval, in (0, 1).
        resamples: Bootstrap samples.
        seed: Of the bootstrap.

    Returns:
        The rates over all prompts, each prompt weighing the same.

    Raises:
        ValueError: If nothing is compared or the lengths differ.
    """
    groups = list(range(len(scores))) if clusters is None else list(clusters)
    _check(scores, baseline_scores, groups)
    shares = [
        compare(score, others, tie_margin=tie_margin) for score, others in zip(scores, baseline_scores, strict=True)
    ]
    halves = [win + 0.5 * tie for win, tie, _ in shares]
    interval = cluster_bootstrap(halves, groups, num_samples=resamples, confidence=confidence, seed=seed)
    win, tie, lose = (sum(share[i] for share in shares) / len(shares) for i in range(3))
    return WinRate(win, tie, lose, win + 0.5 * tie, interval.low, interval.high, len(shares), len(set(groups)))


def _check(scores: Sequence[float], baselines: Sequence[Sequence[float]], groups: Sequence[Hashable]) -> None:
    if not scores:
        raise ValueError("`scores` is empty: there is nothing to compare.")
    if not len(scores) == len(baselines) == len(groups):
        raise ValueError(
            f"`scores` ({len(scores)}), `baseline_scores` ({len(baselines)}) and `clusters` ({len(groups)}) must have "
            "one entry a prompt."
        )
    if not all(baselines):
        raise ValueError("every prompt needs at least one score in `baseline_scores`.")


def win_rates_by(
    labels: Sequence[str],
    scores: Sequence[float],
    baseline_scores: Sequence[Sequence[float]],
    *,
    clusters: Sequence[Hashable] | None = None,
    tie_margin: float = 0.08,
    seed: int = 0,
) -> Mapping[str, WinRate]:
    """The win rate over all prompts (``"all"``) and over those of each label (``"helpful"``, ``"harmless"``).

    Args:
        labels: The label of each prompt, length N.
        scores: See :func:`win_rate`.
        baseline_scores: See :func:`win_rate`.
        clusters: See :func:`win_rate`.
        tie_margin: See :func:`win_rate`.
        seed: See :func:`win_rate`.

    Raises:
        ValueError: If nothing is compared or the lengths differ.
    """
    groups = list(range(len(scores))) if clusters is None else list(clusters)
    _check(scores, baseline_scores, groups)
    if len(labels) != len(scores):
        raise ValueError(f"`labels` ({len(labels)}) and `scores` ({len(scores)}) must have one entry a prompt.")
    rates = {}
    for label in ("all", *sorted(set(labels))):
        rows = [i for i, name in enumerate(labels) if label in ("all", name)]
        rates[label] = win_rate(
            [scores[i] for i in rows],
            [baseline_scores[i] for i in rows],
            clusters=[groups[i] for i in rows],
            tie_margin=tie_margin,
            seed=seed,
        )
    return rates
