"""The reward-model report: every number of it in one dataclass (its page: ``reports/reward_page.py``)."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_rlhf.evaluation.intervals import Interval
from lit_rlhf.reward_report.accuracy import (
    Accuracy,
    Histogram,
    LengthBucket,
    accuracy_by_length,
    accuracy_by_subset,
    difference_histogram,
    pair_accuracy,
)
from lit_rlhf.reward_report.calibration import Calibration, calibration
from lit_rlhf.reward_report.length_bias import LengthBias, length_bias
from lit_rlhf.reward_report.pairs import PairColumns, ScoredPair
from lit_rlhf.reward_report.probes import Probe, ScoreFunction, probe


@dataclass(frozen=True, kw_only=True)
class RewardReport:
    """All that the report says.

    Attributes:
        model: What was scored with, for the page's head.
        data: What was scored, for the page's head.
        pairs: Number of pairs.
        clusters: Number of dialogues or prompts; fewer than pairs means that every interval is clustered by them.
        confidence: Coverage of every interval.
        accuracy: Share of pairs with r(chosen) > r(rejected), ties half.
        by_subset: The same by subset.
        by_length: The same by difference in length.
        differences: Distribution of r(chosen) - r(rejected) (paper, Figure 2).
        calibration: Whether sigmoid of the difference is a probability.
        length_bias: What length alone explains.
        probes: Degenerate responses; empty without a scoring function.
        worst: The pairs with the lowest difference, lowest first (paper, Table 1).
    """

    model: str
    data: str
    pairs: int
    clusters: int
    confidence: float
    accuracy: Accuracy
    by_subset: Mapping[str, Accuracy]
    by_length: tuple[LengthBucket, ...]
    differences: Histogram
    calibration: Calibration
    length_bias: LengthBias
    probes: tuple[Probe, ...]
    worst: tuple[ScoredPair, ...]

    @classmethod
    def from_scores(
        cls,
        pairs: Sequence[ScoredPair],
        *,
        score_fn: ScoreFunction | None = None,
        model: str = "",
        data: str = "",
        num_worst: int = 10,
        max_probed: int = 200,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> RewardReport:
        """Computes the report from scored pairs.

        In a distributed test loop: gather the pairs of all ranks first (``distributed.all_gather_object``), then call
        this on rank 0 alone. Nothing in here communicates, as long as ``score_fn`` does not, and the order of the
        pairs changes nothing.

        Args:
            pairs: The scored pairs, of all ranks.
            score_fn: Scores (prompt, response) requests for the degenerate probes; None leaves them out.
            model: Name of the reward model, for the page's head.
            data: Name of the data, for the page's head.
            num_worst: Number of worst pairs shown.
            max_probed: At most this many pairs, drawn with ``seed``, are spoiled for the probes.
            confidence: Coverage of every interval.
            seed: Seed of bootstraps, simulation and draw.

        Raises:
            ValueError: If there are no pairs, a score is not finite, or ``score_fn`` returns what it must not.
        """
        pairs = sorted(pairs, key=lambda p: (p.prompt, p.chosen, p.rejected, p.subset))  # whatever the ranks' order
        columns = PairColumns.from_pairs(pairs)
        probed = random.Random(seed).sample(pairs, min(max_probed, len(pairs)))
        return cls(
            model=model,
            data=data,
            pairs=len(pairs),
            clusters=len(set(columns.clusters)),
            confidence=confidence,
            accuracy=pair_accuracy(columns, confidence=confidence),
            by_subset=accuracy_by_subset(columns, confidence=confidence),
            by_length=accuracy_by_length(columns, confidence=confidence),
            differences=difference_histogram(columns),
            calibration=calibration(columns, confidence=confidence, seed=seed),
            length_bias=length_bias(columns, confidence=confidence, seed=seed),
            probes=() if score_fn is None else probe(probed, score_fn, confidence=confidence, seed=seed),
            worst=tuple(sorted(pairs, key=lambda pair: pair.difference)[:num_worst]),
        )

    def summary(self) -> dict[str, float]:
        """The headline numbers under metric names, for loggers; numbers that do not exist (NaN) are left out."""
        bias = self.length_bias
        numbers = {
            "accuracy": self.accuracy.rate.mean,
            "accuracy_low": self.accuracy.rate.low,
            "accuracy_high": self.accuracy.rate.high,
            "log_loss": self.calibration.log_loss,
            "ece": self.calibration.ece,
            "longer_wins": bias.longer_wins.rate.mean,
            "prefers_longer": bias.model_prefers_longer.rate.mean,
            "length_correlation": bias.pearson_within,
        }
        numbers |= {f"accuracy_{name}": part.rate.mean for name, part in self.by_subset.items()}
        return {name: value for name, value in numbers.items() if math.isfinite(value)}

    def to_json(self) -> str:
        """The whole report as JSON; intervals are objects with low, mean and high, and NaN is null."""
        return json.dumps(plain(self), indent=2, allow_nan=False)


def plain(value: Any) -> Any:
    """``value`` in JSON's own types: dataclasses and intervals as objects, tuples as lists, NaN as null."""
    if isinstance(value, Interval):
        return {name: plain(end) for name, end in value._asdict().items()}
    if dataclasses.is_dataclass(value):
        # What the probes' scoring function is handed is no result, and need not be JSON at all.
        names = [field.name for field in dataclasses.fields(value) if field.name != "prompt_source"]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
