"""A preference pair with what the reward model says of it, and all pairs as columns."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ScoredPair:
    """One preference pair with its two scores.

    Attributes:
        prompt: The prompt as text: shown in the report, and what tells which pairs belong together.
        chosen: Text of the reply the annotator preferred.
        rejected: Text of the other reply.
        chosen_score: The reward model's raw score of ``chosen``.
        rejected_score: The reward model's raw score of ``rejected``.
        chosen_length: Tokens of ``chosen``.
        rejected_length: Tokens of ``rejected``.
        subset: What part of the data the pair comes from, e.g. "helpful".
        prompt_source: What the scoring function of the probes gets as the prompt (messages or token ids); None
            hands it the text.
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
        prompts: Length N; pairs of one prompt are one cluster of every interval.
        subsets: Length N.
    """

    chosen_scores: Tensor
    rejected_scores: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    prompts: Sequence[Hashable]
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
                    raise ValueError(f"Scores must be finite; the {side} reply to {pair.prompt!r:.80} has {score}.")
        return cls(
            chosen_scores=torch.tensor([p.chosen_score for p in pairs], dtype=torch.float64),
            rejected_scores=torch.tensor([p.rejected_score for p in pairs], dtype=torch.float64),
            chosen_lengths=torch.tensor([p.chosen_length for p in pairs], dtype=torch.float64),
            rejected_lengths=torch.tensor([p.rejected_length for p in pairs], dtype=torch.float64),
            prompts=[p.prompt for p in pairs],
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
