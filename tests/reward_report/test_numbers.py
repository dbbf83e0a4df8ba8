"""Known answers and relations of accuracy, histogram, calibration and length bias."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import scipy.stats
import torch

from lit_rlhf.evaluation.intervals import cluster_bootstrap, wilson_interval
from lit_rlhf.reward_report.accuracy import (
    accuracy_by_length,
    accuracy_by_subset,
    difference_histogram,
    pair_accuracy,
)
from lit_rlhf.reward_report.calibration import calibration, pair_calibration_error
from lit_rlhf.reward_report.length_bias import length_bias
from lit_rlhf.reward_report.pairs import PairColumns, ScoredPair


def columns(differences, length_differences=None, *, prompts=None, subsets=None) -> PairColumns:
    """Pairs with given differences; the rejected responses score 0 and have 1000 tokens."""
    gaps = torch.as_tensor(differences, dtype=torch.float64)
    lengths = torch.zeros_like(gaps) if length_differences is None else torch.as_tensor(length_differences).double()
    return PairColumns(
        chosen_scores=gaps,
        rejected_scores=torch.zeros_like(gaps),
        chosen_lengths=1000 + lengths,
        rejected_lengths=torch.full_like(gaps, 1000),
        clusters=list(range(len(gaps))) if prompts is None else prompts,
        subsets=["all"] * len(gaps) if subsets is None else subsets,
    )


def pair(**changes) -> ScoredPair:
    given = {"prompt": "p", "chosen": "c", "rejected": "r", "chosen_score": 1.0, "rejected_score": 0.0}
    return ScoredPair(**(given | {"chosen_length": 3, "rejected_length": 2} | changes))


def logistic(seed: int, n: int, scale: float) -> torch.Tensor:
    """Differences of a perfectly calibrated model: of its favorite's, a share sigmoid(|d|) is right."""
    generator = torch.Generator().manual_seed(seed)
    size = scale * torch.rand(n, generator=generator, dtype=torch.float64)
    right = torch.rand(n, generator=generator, dtype=torch.float64) < torch.sigmoid(size)
    return torch.where(right, size, -size)


class TestAccuracy:
    def test_ties_are_half_right(self):
        result = pair_accuracy(columns([2.0, 0.5, -1.0, 0.0, 0.0]))
        assert (result.pairs, result.ties, result.rate.mean) == (5, 2, 0.6)
        assert result.rate == wilson_interval(3, 5)

    def test_a_constant_model_is_a_coin(self):
        assert pair_accuracy(columns([0.0] * 8)).rate.mean == 0.5

    def test_pairs_of_one_prompt_are_clustered(self):
        values, prompts = [1, 1, -1, -1, 1, -1], list("aabbcc")
        result = pair_accuracy(columns(values, prompts=prompts))
        assert result.rate == cluster_bootstrap([1, 1, 0, 0, 1, 0], prompts)

    def test_subsets_add_up(self):
        parts = accuracy_by_subset(columns([1, -1, 1, 1], subsets=["b", "a", "b", "a"]))
        assert list(parts) == ["a", "b"]
        assert [parts[name].rate.mean for name in parts] == [0.5, 1.0]
        assert sum(part.pairs for part in parts.values()) == 4


class TestLengthBuckets:
    def test_sides_do_not_mix_and_every_pair_is_counted_once(self):
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(-40, 41, (997,), generator=generator)
        buckets = accuracy_by_length(columns(torch.randn(997, generator=generator), lengths))
        assert sum(b.accuracy.pairs for b in buckets) == 997
        assert all(b.high < 0 or b.low > 0 or b.low == b.high == 0 for b in buckets)
        assert [b.low for b in buckets] == sorted(b.low for b in buckets)
        assert all(one.high < two.low for one, two in itertools.pairwise(buckets))
        assert len(buckets) == 7

    def test_a_token_counter_is_wrong_on_the_left_and_right_on_the_right(self):
        lengths = [-9, -5, -1, 0, 2, 4, 8]
        buckets = accuracy_by_length(columns(lengths, lengths))
        assert [b.accuracy.rate.mean for b in buckets] == [0, 0, 0, 0.5, 1, 1, 1]

    def test_empty_buckets_are_left_out(self):
        assert [(b.low, b.high) for b in accuracy_by_length(columns([1, 1], [3, 3]))] == [(3, 3)]


class TestHistogram:
    def test_counts_by_sign_agree_with_accuracy(self):
        gaps = torch.randn(500, generator=torch.Generator().manual_seed(0))
        shape = difference_histogram(columns(gaps), num_bins=10)
        assert sum(shape.counts) == 500
        assert sum(shape.counts[:5]) == int((gaps < 0).sum())
        assert shape.edges[5] == 0
        assert shape.edges == pytest.approx([-e for e in reversed(shape.edges)])

    def test_known_counts_and_outlier_in_the_last_bin(self):
        shape = difference_histogram(columns([-1.0, -0.5, 0.0, 0.5, 0.99] * 100 + [1000.0]), num_bins=4)
        assert shape.edges[-1] == 1.0
        assert shape.counts == (100, 100, 100, 201)

    @pytest.mark.parametrize("gaps", [[0.0, 0.0], [3.0], [0.0] * 999 + [5.0]])
    def test_degenerate_values_have_bins(self, gaps):
        shape = difference_histogram(columns(gaps))
        assert sum(shape.counts) == len(gaps)
        assert shape.edges[0] < 0 < shape.edges[-1]

    def test_refuses_an_odd_number_of_bins(self):
        with pytest.raises(ValueError, match=r"`num_bins` \(5\) must be even"):
            difference_histogram(columns([1.0]), num_bins=5)


class TestCalibration:
    def test_one_bin_by_hand(self):
        gap = math.log(0.8 / 0.2)  # confidence 0.8 everywhere, right in 1 of 2
        result = calibration(columns([gap, -gap]))
        assert result.ece == pytest.approx(0.3)
        assert result.mean_confidence == pytest.approx(0.8)
        assert result.brier == pytest.approx((0.2**2 + 0.8**2) / 2)
        assert result.log_loss == pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2)
        assert [(b.pairs, b.accuracy.mean) for b in result.bins] == [(2, 0.5)]

    def test_mirrored_error_equals_the_folded_sum_over_bins(self):
        gaps = 2 * torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
        result = calibration(columns(gaps))
        folded = sum(b.pairs * abs(b.accuracy.mean - b.confidence) for b in result.bins) / 300
        assert result.ece == pytest.approx(folded, abs=1e-9)
        assert sum(b.pairs for b in result.bins) == 300

    def test_the_order_in_a_pair_does_not_matter_but_the_labels_do(self):
        gaps = logistic(0, 400, 3.0)
        assert pair_calibration_error(gaps) == pytest.approx(pair_calibration_error(gaps.flip(0)))
        assert pair_calibration_error(-gaps) > 0.3

    def test_a_calibrated_model_has_the_error_of_chance(self):
        results = [calibration(columns(logistic(seed, 1000, 4.0))) for seed in range(5)]
        assert sum(r.ece for r in results) / 5 == pytest.approx(results[0].ece_by_chance, rel=0.25)

    def test_overconfidence_shows(self):
        honest = logistic(0, 2000, 2.0)
        assert pair_calibration_error(5 * honest) > 0.15 > 3 * pair_calibration_error(honest)

    def test_error_of_a_calibrated_model_vanishes_with_more_pairs(self):
        assert pair_calibration_error(logistic(0, 200_000, 4.0)) < 0.005

    def test_saturated_scores(self):
        sure = calibration(columns([1000.0, 1000.0, -1000.0, 40.0]))
        assert sure.ece == pytest.approx(0.25)
        assert math.isfinite(sure.log_loss)

    def test_a_constant_model_is_calibrated(self):
        result = calibration(columns([0.0] * 10))
        assert result.ece == pytest.approx(0)
        assert result.log_loss == pytest.approx(math.log(2))


class TestLengthBias:
    def test_correlations_equal_scipy(self):
        generator = torch.Generator().manual_seed(0)
        made = [
            pair(prompt=str(i), chosen_score=a, rejected_score=b, chosen_length=c, rejected_length=d)
            for i, (a, b, c, d) in enumerate(
                zip(
                    torch.randn(200, generator=generator).tolist(),
                    torch.randn(200, generator=generator).tolist(),
                    torch.randint(1, 50, (200,), generator=generator).tolist(),
                    torch.randint(1, 50, (200,), generator=generator).tolist(),
                    strict=True,
                )
            )
        ]
        result = length_bias(PairColumns.from_pairs(made))
        scores = [p.chosen_score for p in made] + [p.rejected_score for p in made]
        lengths = [p.chosen_length for p in made] + [p.rejected_length for p in made]
        assert result.pearson == pytest.approx(scipy.stats.pearsonr(scores, lengths).statistic)
        assert result.spearman == pytest.approx(scipy.stats.spearmanr(scores, lengths).statistic)
        mean_score = [(p.chosen_score + p.rejected_score) / 2 for p in made] * 2
        mean_length = [(p.chosen_length + p.rejected_length) / 2 for p in made] * 2
        inner_score = [s - m for s, m in zip(scores, mean_score, strict=True)]
        inner_length = [n - m for n, m in zip(lengths, mean_length, strict=True)]
        expected = scipy.stats.pearsonr(inner_score, inner_length).statistic
        assert result.pearson_within == pytest.approx(expected)
        assert sum(b.responses for b in result.bins) == 400

    def test_what_only_depends_on_the_prompt_is_not_within_pairs(self):
        made = [
            pair(
                prompt=str(i),
                chosen_score=float(i),
                rejected_score=float(i),
                chosen_length=10 * i + i % 2,
                rejected_length=10 * i,
            )
            for i in range(1, 20)
        ]
        result = length_bias(PairColumns.from_pairs(made))
        assert result.pearson > 0.99
        assert math.isnan(result.pearson_within)

    def test_a_token_counter_has_no_advantage_over_the_rule(self):
        gaps = [3, -2, 5, 0, -7, 4]
        result = length_bias(columns(gaps, gaps))
        assert result.model_prefers_longer.rate.mean == pytest.approx(5.5 / 6)  # the equal pair counts half
        assert result.accuracy_minus_longer == (0, 0, 0)
        assert result.longer_wins.rate.mean == pytest.approx(3.5 / 6)
        assert result.longer_wins.ties == 1

    def test_the_advantage_is_paired(self):
        result = length_bias(columns([1, 1, -1, 1], [1, -1, -1, -1]))
        assert result.accuracy_minus_longer.mean == pytest.approx(0.75 - 0.25)
        assert result.accuracy_minus_shorter.mean == pytest.approx(0.75 - 0.75)
        assert result.model_prefers_longer.rate.mean == 0.5

    def test_constant_lengths_have_no_correlation(self):
        result = length_bias(columns([1.0, 2.0, 3.0]))
        assert math.isnan(result.pearson)
        assert math.isnan(result.spearman_within)


class TestPairColumns:
    def test_refuses_no_pairs(self):
        with pytest.raises(ValueError, match="at least one scored pair"):
            PairColumns.from_pairs([])

    @pytest.mark.parametrize(("side", "value"), [("chosen", math.nan), ("rejected", math.inf)])
    def test_names_the_pair_with_a_bad_score(self, side, value):
        bad = dataclasses.replace(pair(prompt="which one"), **{f"{side}_score": value})
        with pytest.raises(ValueError, match=rf"the {side} response to 'which one' has {value}"):
            PairColumns.from_pairs([pair(), bad])
