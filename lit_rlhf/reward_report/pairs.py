"""A preference pair with what the reward model says of it, and all pairs as columns."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.types import PreferenceBatch


@dataclass(frozen=True, kw_only=True)
class ScoredPair:
    """One preference pair with its two scores.

    Attributes:
        prompt: The prompt as text.
        chosen: Text of the response the annotator preferred.
        rejected: Text of the other response.
        chosen_score: The reward model's raw score of ``chosen``.
        rejected_score: The reward model's raw score of ``rejected``.
        chosen_length: Tokens of ``chosen``.
        rejected_length: Tokens of ``rejected``.
        subset: What part of the data the pair comes from, e.g. "helpful".
        prompt_source: What the scoring function of the probes gets as the prompt (messages or token ids); None
            hands it the text.
        cluster: What makes pairs dependent, e.g. the dialogue whose turns they are; empty for the prompt.
    """

    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float
    chosen_length: int
    rejected_length: int
    subset: str = "all"
    prompt_source: Any = None
    cluster: str = ""

    @property
    def difference(self) -> float:
        """r(chosen) - r(rejected): positive where the reward model agrees with the annotator."""
        return self.chosen_score - self.rejected_score


@dataclass(frozen=True, kw_only=True)
class PairColumns:
    """N pairs as columns.

    Attributes:
        chosen_scores: ``(N,)`` fp64.
        rejected_scores: ``(N,)`` fp64.
        chosen_lengths: ``(N,)`` fp64, tokens.
        rejected_lengths: ``(N,)`` fp64, tokens.
        clusters: Length N; pairs of one cluster are resampled together in every interval.
        subsets: Length N.
    """

    chosen_scores: Tensor
    rejected_scores: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    clusters: Sequence[Hashable]
    subsets: Sequence[str]

    @classmethod
    def from_pairs(cls, pairs: Sequence[ScoredPair]) -> PairColumns:
        """Gathers the pairs' numbers.

        Raises:
            ValueError: If there are no pairs or a score is not finite; the message names the pair.
        """
        if not pairs:
            raise ValueError("`pairs` must hold at least one scored pair.")
        for pair in pairs:
            for side in ("chosen", "rejected"):
                score = getattr(pair, f"{side}_score")
                if not math.isfinite(score):
                    raise ValueError(f"Scores must be finite; the {side} response to {pair.prompt!r:.80} has {score}.")
        return cls(
            chosen_scores=torch.tensor([p.chosen_score for p in pairs], dtype=torch.float64),
            rejected_scores=torch.tensor([p.rejected_score for p in pairs], dtype=torch.float64),
            chosen_lengths=torch.tensor([p.chosen_length for p in pairs], dtype=torch.float64),
            rejected_lengths=torch.tensor([p.rejected_length for p in pairs], dtype=torch.float64),
            clusters=[p.cluster or p.prompt for p in pairs],
            subsets=[p.subset for p in pairs],
        )

    @property
    def score_differences(self) -> Tensor:
        """r(chosen) - r(rejected), ``(N,)`` fp64."""
        return self.chosen_scores - self.rejected_scores

    @property
    def length_differences(self) -> Tensor:
        """Tokens of chosen minus tokens of rejected, ``(N,)`` fp64."""
        return self.chosen_lengths - self.rejected_lengths

    def __len__(self) -> int:
        return len(self.chosen_scores)


def scored_pairs(batch: PreferenceBatch, chosen: Tensor, rejected: Tensor, tokenizer: Any) -> list[ScoredPair]:
    """A test batch and its scores as pairs, for a test loop to collect.

    Texts are decoded from the ids, so that they are what the model read; the probes get the prompt's ids. A record's
    ``subset`` and ``group`` (see ``PreferenceDataModule``) become subset and cluster.

    Args:
        batch: B pairs.
        chosen: Scores of the preferred responses, ``(B,)``.
        rejected: Scores of the others, ``(B,)``.
        tokenizer: The reward model's.
    """
    pairs = []
    for i in range(len(batch)):
        start = int(batch.prompt_length[i])
        prompt = batch.chosen_ids[i, :start].tolist()
        better = batch.chosen_ids[i][batch.chosen_mask[i]][start:].tolist()
        worse = batch.rejected_ids[i][batch.rejected_mask[i]][start:].tolist()
        record = batch.records[i] if batch.records else {}
        pairs.append(
            ScoredPair(
                prompt=tokenizer.decode(prompt),
                chosen=tokenizer.decode(better, skip_special_tokens=True),
                rejected=tokenizer.decode(worse, skip_special_tokens=True),
                chosen_score=float(chosen[i]),
                rejected_score=float(rejected[i]),
                chosen_length=len(better),
                rejected_length=len(worse),
                subset=str(record.get("subset") or "all"),
                prompt_source=prompt,
                cluster=str(record.get("group") or ""),
            )
        )
    return pairs
