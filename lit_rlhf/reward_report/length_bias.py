"""Does the reward model pay for length? The commonest way in which PPO games it (paper, section 4.3 and Table 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef

from lit_rlhf.evaluation.intervals import Interval, cluster_bootstrap
from lit_rlhf.reward_report.accuracy import Accuracy, equal_count_edges, outcomes, rate_of
from lit_rlhf.reward_report.pairs import PairColumns


@dataclass(frozen=True, kw_only=True)
class LengthBin:
    """Responses of similar length.

    Attributes:
        low: Fewest tokens.
        high: Most tokens.
        responses: Number of responses, chosen and rejected together.
        score: Their mean score, with a clustered interval.
    """

    low: int
    high: int
    responses: int
    score: Interval


@dataclass(frozen=True, kw_only=True)
class LengthBias:
    """What length alone explains.

    Attributes:
        pearson: Correlation of score and length over all responses, chosen and rejected; NaN if one never varies.
        spearman: The same on ranks.
        pearson_within: Correlation of score and length within pairs: each response's score and length less its pair's
            mean, so that nothing which only depends on the prompt contributes.
        spearman_within: The same on ranks.
        longer_wins: Accuracy of the rule "the longer response is preferred", equal lengths half: the baseline.
        model_prefers_longer: How often the reward model scores the longer response higher; equal ones count half.
        accuracy_minus_longer: The model's accuracy less the rule's, with a paired interval: the model has learned
            more than length where this is above 0.
        accuracy_minus_shorter: The same against the rule "the shorter response is preferred", the better one where
            ``longer_wins`` is below 0.5 (refusals are short).
        bins: Mean score by length, responses cut into bins of about equal count.
    """

    pearson: float
    spearman: float
    pearson_within: float
    spearman_within: float
    longer_wins: Accuracy
    model_prefers_longer: Accuracy
    accuracy_minus_longer: Interval
    accuracy_minus_shorter: Interval
    bins: tuple[LengthBin, ...]


def length_bias(columns: PairColumns, *, num_bins: int = 10, confidence: float = 0.95, seed: int = 0) -> LengthBias:
    """Length bias of the scores; lengths in tokens.

    Args:
        columns: The scored pairs.
        num_bins: Bins of length, of about equal count.
        confidence: Coverage of the intervals.
        seed: Seed of the bootstraps.
    """
    scores, lengths = _responses(columns)
    half_score, half_length = columns.score_differences / 2, columns.length_differences / 2
    within = torch.cat([half_score, -half_score]), torch.cat([half_length, -half_length])
    right, longer = outcomes(columns.score_differences), outcomes(columns.length_differences)
    follows = outcomes(columns.score_differences * columns.length_differences.sign())
    advantages = [
        cluster_bootstrap((right - rule).tolist(), columns.clusters, confidence=confidence, seed=seed)
        for rule in (longer, 1 - longer)
    ]
    return LengthBias(
        pearson=_correlation(scores, lengths),
        spearman=_correlation(scores, lengths, by_rank=True),
        pearson_within=_correlation(*within),
        spearman_within=_correlation(*within, by_rank=True),
        longer_wins=rate_of(longer, columns, confidence=confidence),
        model_prefers_longer=rate_of(follows, columns, confidence=confidence),
        accuracy_minus_longer=advantages[0],
        accuracy_minus_shorter=advantages[1],
        bins=_score_by_length(columns, num_bins=num_bins, confidence=confidence, seed=seed),
    )


def _responses(columns: PairColumns) -> tuple[Tensor, Tensor]:
    """Scores and lengths of all 2N responses, both ``(2N,)`` fp64."""
    scores = torch.cat([columns.chosen_scores, columns.rejected_scores])
    return scores, torch.cat([columns.chosen_lengths, columns.rejected_lengths])


def _correlation(x: Tensor, y: Tensor, *, by_rank: bool = False) -> float:
    if bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return math.nan  # undefined; asked before torchmetrics warns about it
    return float((spearman_corrcoef if by_rank else pearson_corrcoef)(x, y))


def _score_by_length(columns: PairColumns, *, num_bins: int, confidence: float, seed: int) -> tuple[LengthBin, ...]:
    scores, lengths = _responses(columns)
    owners = [*columns.clusters, *columns.clusters]
    places = torch.bucketize(lengths, equal_count_edges(lengths, num_bins))
    bins = []
    for place in sorted(set(places.tolist())):
        picks = (places == place).nonzero().flatten()
        clusters = [owners[i] for i in picks.tolist()]
        score = cluster_bootstrap(scores[picks].tolist(), clusters, num_samples=500, confidence=confidence, seed=seed)
        low, high = int(lengths[picks].min()), int(lengths[picks].max())
        bins.append(LengthBin(low=low, high=high, responses=len(picks), score=score))
    return tuple(bins)
