"""Answering held-out prompts, scoring the answers, keeping a row of each: a part that any module can own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.data.batching import micro_batches
from lit_rlhf.distributed import all_gather_object, rank
from lit_rlhf.evaluation.responses import evaluation_means, write_rows
from lit_rlhf.models.compact import compact_rows
from lit_rlhf.models.scoring import response_logprobs
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rollout.requests import eval_uniforms, response_rows
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.types import PromptBatch, RewardRequest, Rollout, ScoredRollout

EVAL_TOKENS = 16384
"""Tokens of a forward pass, padding included."""


class PromptEvaluator:
    """What validation, test and prediction on prompts need beside a policy.

    A module owns one and calls, in order: :meth:`setup` once; :meth:`start`; for every batch :meth:`score` and
    :meth:`add`; :meth:`finish`.

    Args:
        sampling: How responses are drawn.
        rewards: Scores by name; each is a key of the rows and a metric. The first one is also the ``scores`` column
            that callbacks see; without any the column is zero.
        logits_gib: ``ModelConfig.logits_gib``.
    """

    def __init__(
        self,
        *,
        sampling: SamplingConfig,
        rewards: Mapping[str, Reward] | None = None,
        logits_gib: float | None = None,
    ) -> None:
        self.sampling, self.logits_gib = sampling, logits_gib
        self.rewards = dict(rewards or {})
        self._rows: list[dict[str, Any]] = []
        self._problem: str | None = None
        self._tokenizer: Any = None

    def setup(self, *, device: torch.device, tokenizer: Any) -> None:
        """Load what the rewards need; once on each rank."""
        self._tokenizer = tokenizer
        for reward in self.rewards.values():
            reward.setup(device=device, tokenizer=tokenizer)

    def uniforms(self, prompts: PromptBatch) -> Tensor:
        """Random numbers of each row, ``(B, max_response_length)`` float64, the same in every run."""
        return eval_uniforms(prompts, self.sampling.max_response_length)

    @staticmethod
    def rows(request: RewardRequest) -> list[dict[str, Any]]:
        """Responses as JSON-able rows: ``prompt``, ``response``, ``tokens``, ``ended``, the raw record, its place."""
        return response_rows(request)

    @torch.no_grad()
    def score(
        self, rollout: Rollout, request: RewardRequest, *, policy: Any, reference: Any | None
    ) -> tuple[ScoredRollout, list[dict[str, Any]]]:
        """What models and rewards say of responses.

        Args:
            rollout: B responses.
            request: The same ones with texts.
            policy: Causal language model that drew them.
            reference: Another one, on the same device, or None.

        Returns:
            The responses as callbacks see them, and one row each with ``logprob`` and, with a reference,
            ``ref_logprob`` (sums over the response, nats) and every reward's score.

        Raises:
            ValueError: If a reward gives something else than one finite number per response.
        """
        logprobs = self._logprobs(rollout, policy)
        ref_logprobs = None if reference is None else self._logprobs(rollout, reference)
        outputs = {name: reward(request).scores for name, reward in self.rewards.items()}
        scored = ScoredRollout(
            **rollout.as_dict(),
            old_logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            old_values=torch.zeros_like(logprobs),
            scores=next(iter(outputs.values()), logprobs.new_zeros(len(rollout))),
            token_scores=torch.zeros_like(logprobs),
        )
        rows = self.rows(request)
        for i, row in enumerate(rows):
            row["logprob"] = float(logprobs[i].sum())
            if ref_logprobs is not None:
                row["ref_logprob"] = float(ref_logprobs[i].sum())
            row.update({name: float(scores[i]) for name, scores in outputs.items()})
        return scored, rows

    def start(self) -> None:
        """Begin an evaluation with an empty table."""
        self._rows, self._problem = [], None

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Keep the rows of a batch."""
        self._rows.extend(rows)

    @contextmanager
    def noting_problems(self) -> Iterator[None]:
        """Keep a ValueError of a batch for :meth:`finish`: ranks may have different numbers of batches."""
        try:
            yield
        except ValueError as error:
            self._problem = self._problem or str(error)

    def finish(self, folder: Path | None, name: str) -> dict[str, float]:
        """Means over all ranks' rows, which rank 0 writes to ``folder / name`` (None writes nothing). A collective.

        Raises:
            ValueError: On all ranks, the first problem that any of them noted.
        """
        problems = [problem for problem in all_gather_object(self._problem) if problem]
        rows = [row for part in all_gather_object(self._rows) for row in part]
        self.start()
        if problems:
            raise ValueError(problems[0])
        if not rows:
            return {}
        rows.sort(key=lambda row: (row.get("sample", 0), row.get("row", 0)))
        if folder is not None and rank() == 0:
            write_rows(folder / name, rows)
        return evaluation_means(rows, list(self.rewards))

    def _logprobs(self, rollout: Rollout, model: Any) -> Tensor:
        lengths = rollout.attention_mask.sum(1).tolist()
        out = torch.zeros(rollout.response_mask.shape, device=rollout.input_ids.device)
        for part in micro_batches(lengths, EVAL_TOKENS):
            rows = torch.tensor(part)
            compact = compact_rows(rollout, rows, self._tokenizer.pad_token_id)
            values, _ = response_logprobs(model, compact, logits_gib=self.logits_gib)
            out[rows, : values.size(1)] = values
        return out
