"""From curves to conclusions: differences within seed with their interval, and what they say of a claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.studies.plan import Claim, Study
from lit_rlhf.studies.results import Curve, Results, summary

VERDICTS = ("same", "different", "cannot be told")
FEWEST_SEEDS = 3
"""Below, nothing is concluded."""

# 97.5 % points of Student's t for 1, 2, ... degrees of freedom; beyond them the normal distribution is near enough.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL = 1.960


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim and what the runs say of it.

    Attributes:
        figure: Title of the figure it belongs to.
        claim: The claim.
        differences: The arm less the other one, by seed.
        interval: Their mean with its 95 % interval over seeds; NaN ends below two seeds.
        verdict: ``same`` as claimed, ``different``, or ``cannot be told``.
    """

    figure: str
    claim: Claim
    differences: Mapping[int, float]
    interval: Interval
    verdict: str


def findings(study: Study, results: Results) -> list[Finding]:
    """Every claim of the study, in its order."""
    return [judged(figure.title, claim, results) for figure in study.figures for claim in figure.claims]


def judged(figure: str, claim: Claim, results: Results) -> Finding:
    """Compare the two arms of a claim in every seed that both have."""
    ours, theirs = _summaries(claim.arm, claim, results), _summaries(claim.against, claim, results)
    differences = {seed: ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}
    interval = t_interval(list(differences.values()))
    told = len(differences) >= FEWEST_SEEDS
    verdict = verdict_of(interval, claim) if told else "cannot be told"
    return Finding(figure=figure, claim=claim, differences=differences, interval=interval, verdict=verdict)


def verdict_of(interval: Interval, claim: Claim) -> str:
    """``same``, ``different`` or ``cannot be told``.

    A claimed difference is the same when the whole interval is on its side of zero, and different when none of it is
    beyond ``margin``. A claim of none is the same when the whole interval is within the margin (a test of equivalence),
    and different when zero is outside and the mean beyond the margin.
    """
    low, high, margin = interval.low, interval.high, claim.margin
    if claim.expected == "none":
        if -margin <= low and high <= margin:
            return "same"
        return "different" if (low > 0 or high < 0) and abs(interval.mean) > margin else "cannot be told"
    if claim.expected == "lower":
        low, high = -high, -low
    if low > 0:
        return "same"
    return "different" if high <= margin else "cannot be told"


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values with Student's 95 % interval.

    Returns:
        NaN for the ends of a single value, for all of it without one.
    """
    if not values:
        return Interval(math.nan, math.nan, math.nan)
    center = mean(values)
    if len(values) == 1:
        return Interval(math.nan, center, math.nan)
    free = len(values) - 1
    half = (_T[free - 1] if free <= len(_T) else _NORMAL) * stdev(values) / math.sqrt(len(values))
    return Interval(center - half, center, center + half)


@dataclass(frozen=True, kw_only=True)
class Frontier:
    r"""Gold score over distance, :math:`R(d) = R_0 + d (\alpha - \beta \log d)` with :math:`d = \sqrt{KL}`.

    Source: Gao, Schulman and Hilton 2022, "Scaling laws for reward model overoptimization", for RL.
    """

    start: float
    alpha: float
    beta: float

    def at(self, distance: float) -> float:
        """The fitted score at a distance above 0."""
        return self.start + distance * (self.alpha - self.beta * math.log(distance))


def frontier_fit(points: Sequence[tuple[float, float]], *, start: float | None = None) -> Frontier | None:
    """Least squares over ``(distance, score)``; None where fewer than four distances above 0 are there.

    Args:
        points: Of one arm.
        start: The score at distance 0 where it is known; fitted as well where not.
    """
    import torch

    kept = [(d, score) for d, score in points if d > 0]
    if len({d for d, _ in kept}) < 4:
        return None
    free = [] if start is not None else [1.0]
    rows = torch.tensor([[*free, d, -d * math.log(d)] for d, _ in kept], dtype=torch.float64)
    target = torch.tensor([[score - (start or 0.0)] for _, score in kept], dtype=torch.float64)
    found = torch.linalg.lstsq(rows, target, driver="gelsd").solution[:, 0].tolist()
    return Frontier(start=found[0] if start is None else start, alpha=found[-2], beta=found[-1])


def frontier_points(
    runs: Mapping[int, Mapping[str, Curve]], kl: str, score: str, starts: Mapping[int, float]
) -> list[tuple[float, float]]:
    """``(sqrt(KL), score)`` of every measurement that has both, ascending.

    Args:
        runs: Curves by seed.
        kl: Measure of the distance, before the root.
        score: Measure of the score.
        starts: Score of the policy that every run of a seed began with: scores are those above it. Empty: as they are.
    """
    return sorted(
        (math.sqrt(max(0.0, each[kl][i])), each[score][i] - starts.get(seed, 0.0))
        for seed, each in runs.items()
        if kl in each and score in each
        for i in sorted(each[kl].keys() & each[score].keys())
    )


def _summaries(arm: str, claim: Claim, results: Results) -> dict[int, float]:
    runs = results.get(arm, {})
    return {seed: summary(run[claim.measure], claim.at) for seed, run in runs.items() if run.get(claim.measure)}
