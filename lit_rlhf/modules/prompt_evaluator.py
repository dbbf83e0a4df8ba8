"""Answering held-out prompts, scoring the answers, keeping a row of each: a part that any module can own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.data.batching import micro_batches
from lit_rlhf.distributed import all_gather_object, is_distributed, raise_together, rank, run_together
from lit_rlhf.evaluation.opponent import Opponent
from lit_rlhf.evaluation.responses import evaluation_means
from lit_rlhf.jsonl import write_rows
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
    :meth:`add`, inside :meth:`attempt`; :meth:`finish`, or :meth:`check` where there are no means.

    Args:
        sampling: How responses are drawn.
        rewards: Scores by name; each is a key of the rows and a metric. The first one is also the ``scores`` column
            that callbacks see; without any the column is zero.
        opponent: Saved answers to compare with, or None.
        logits_gib: ``ModelConfig.logits_gib``.

    Raises:
        ValueError: If a reward has the name of a win rate.
    """

    def __init__(
        self,
        *,
        sampling: SamplingConfig,
        rewards: Mapping[str, Reward] | None = None,
        opponent: Opponent | None = None,
        logits_gib: float | None = None,
    ) -> None:
        taken = {"win_rate", "tie_rate"} & set(rewards or {})
        if opponent is not None and taken:
            raise ValueError(f"`eval_rewards` has a {taken.pop()!r}, which is what `opponent` measures.")
        self.sampling, self.opponent, self.logits_gib = sampling, opponent, logits_gib
        self.rewards = dict(rewards or {})
        self._rows: list[dict[str, Any]] = []
        self._failure: Exception | None = None
        self._tokenizer: Any = None

    def prepare(self) -> None:
        """Let every reward refuse what cannot work, before any model is loaded."""
        for reward in self.rewards.values():
            reward.prepare()

    def setup(self, *, device: torch.device, tokenizer: Any) -> None:
        """Load what the rewards need; once on each rank."""
        self._tokenizer = tokenizer
        for reward in self.rewards.values():
            reward.setup(device=device, tokenizer=tokenizer)
        if self.opponent is not None and rank() == 0:
            self.opponent.setup()

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
        columns = {"logprob": logprobs.double().sum(1).tolist()}
        if ref_logprobs is not None:
            columns["ref_logprob"] = ref_logprobs.double().sum(1).tolist()
        columns |= {name: scores.tolist() for name, scores in outputs.items()}
        rows = [{**row, **{k: column[i] for k, column in columns.items()}} for i, row in enumerate(self.rows(request))]
        return scored, rows

    def start(self) -> None:
        """Begin an evaluation with an empty table."""
        self._rows, self._failure = [], None

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Keep the rows of a batch."""
        self._rows.extend(rows)

    def attempt(self, work: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The rows of a batch, ``work()``.

        With several ranks an error is kept for :meth:`check`, and the rank's later batches are skipped: ranks may have
        different numbers of batches, and one that left would leave the others waiting.
        """
        if not is_distributed():
            return work()
        if self._failure is not None:
            return []
        try:
            return work()
        except Exception as error:
            self._failure = error
            return []

    def check(self) -> None:
        """End all ranks where a batch failed on one of them. A collective.

        Raises:
            Exception: See :func:`~lit_rlhf.distributed.raise_together`.
        """
        failure, self._failure = self._failure, None
        raise_together(failure)

    def finish(self, folder: Path | None, name: str) -> dict[str, float]:
        """Means over all ranks' rows, which rank 0 writes to ``folder / name`` (None writes nothing). A collective.

        Raises:
            Exception: On all ranks, what failed on one of them, or the judge's.
        """
        self.check()
        rows = [row for part in all_gather_object(self._rows) for row in part]
        self.start()
        if not rows:
            return {}
        rows.sort(key=lambda row: (row.get("sample", 0), row.get("row", 0)))
        if folder is not None:
            run_together(lambda: write_rows(folder / name, rows) if rank() == 0 else None)
        return {**evaluation_means(rows, list(self.rewards)), **self._against_opponent(rows)}

    def _against_opponent(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """Win rates over all ranks' rows; rank 0 alone asks the judge. A collective where there is an opponent."""
        opponent = self.opponent
        if opponent is None:
            return {}
        measured = run_together(lambda: opponent.measure(rows) if rank() == 0 else {})
        rates: dict[str, float] = all_gather_object(measured)[0]
        return rates

    def _logprobs(self, rollout: Rollout, model: Any) -> Tensor:
        lengths = rollout.attention_mask.sum(1).tolist()
        out = torch.zeros(rollout.response_mask.shape, dtype=torch.float32, device=rollout.input_ids.device)
        for part in micro_batches(lengths, EVAL_TOKENS):
            rows = torch.tensor(part, device=out.device)
            compact = compact_rows(rollout, rows, self._tokenizer.pad_token_id)
            values, _ = response_logprobs(model, compact, logits_gib=self.logits_gib)
            out[rows, : values.size(1)] = values
        return out
