"""What validate, test and predict do for PPO: answer held-out prompts, score the answers, save every one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlhf.callbacks.hooks import emit_validation
from lit_rlhf.data.batching import micro_batches
from lit_rlhf.distributed import all_gather_object, rank
from lit_rlhf.evaluation.responses import evaluation_means, write_rows
from lit_rlhf.models.compact import compact_rows
from lit_rlhf.models.scoring import response_logprobs
from lit_rlhf.modules.answers import eval_uniforms, response_rows
from lit_rlhf.modules.base import run_directory
from lit_rlhf.modules.ppo_models import FourModels
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.types import DeviceBatch, PromptBatch, RewardOutput, Rollout, ScoredRollout

EVAL_TOKENS = 16384


class PromptEvaluation(FourModels):
    """Validation, test and prediction steps of ``PPOModule``.

    Attributes:
        eval_sampling: How responses are drawn.
    """

    eval_sampling: SamplingConfig
    _eval_rows: list[dict[str, Any]]
    _eval_problem: str | None = None

    # ---------------------------------------------------------------- steps

    def validation_step(self, batch: DeviceBatch[PromptBatch], batch_idx: int) -> None:
        """Answer and score a batch of held-out prompts."""
        self._evaluate(batch.content)

    def test_step(self, batch: DeviceBatch[PromptBatch], batch_idx: int) -> None:
        """The same as validation, on the test prompts."""
        self._evaluate(batch.content)

    def _evaluate(self, batch: PromptBatch) -> None:
        # Ranks may have different numbers of batches, so they agree on a bad score at the end of the epoch only.
        try:
            self._eval_rows.extend(self.evaluate_prompts(batch))
        except ValueError as error:
            self._eval_problem = self._eval_problem or str(error)

    def predict_step(self, batch: DeviceBatch[PromptBatch], batch_idx: int) -> list[dict[str, Any]]:
        """Responses as JSON-able rows: ``prompt``, ``response``, ``ended``, ``tokens`` and the raw record."""
        return response_rows(self.reward_request(self.answer(batch.content)))

    def on_validation_epoch_start(self) -> None:
        """Start an empty table."""
        self._eval_rows = []

    def on_test_epoch_start(self) -> None:
        """Start an empty table."""
        self._eval_rows = []

    def on_validation_epoch_end(self) -> None:
        """Log the means as ``val/...`` and save the rows."""
        self._finish_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log the means as ``test/...`` and save the rows."""
        self._finish_evaluation("test")

    # ---------------------------------------------------------------- one batch

    def answer(self, batch: PromptBatch) -> Rollout:
        """Responses under ``eval_sampling`` with the fixed evaluation seed."""
        self.policy.eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            uniforms = eval_uniforms(batch, self.eval_sampling.max_response_length)
            return self.generate(batch, uniforms, self.eval_sampling)

    def evaluate_prompts(self, batch: PromptBatch) -> list[dict[str, Any]]:
        """One row a response: texts, token count, sums of log-probabilities, score and every evaluation reward."""
        rollout = self.answer(batch)
        logprobs, ref_logprobs = self._eval_logprobs(rollout)
        request = self.reward_request(rollout)
        outputs: dict[str, RewardOutput] = {"score": self.reward(request)}
        outputs |= {name: reward(request) for name, reward in self.eval_rewards.items()}
        scored = ScoredRollout(
            **rollout.as_dict(),
            old_logprobs=logprobs,
            ref_logprobs=ref_logprobs,
            old_values=torch.zeros_like(logprobs),
            scores=outputs["score"].scores,
            token_scores=torch.zeros_like(logprobs),
        )
        emit_validation(self.trainer, self, scored)
        rows = response_rows(request)
        for i, row in enumerate(rows):
            row["logprob"] = float(logprobs[i].sum())
            row["ref_logprob"] = float(ref_logprobs[i].sum())
            row.update({name: float(output.scores[i]) for name, output in outputs.items()})
        return rows

    def _eval_logprobs(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        lengths = rollout.attention_mask.sum(1).tolist()
        out = [torch.zeros(rollout.response_mask.shape, device=self.device) for _ in range(2)]
        with (
            torch.no_grad(),
            self.trainer.precision_plugin.forward_context(),
            self.reference.on(self.device) as reference,
        ):
            for part in micro_batches(lengths, EVAL_TOKENS):
                rows = torch.tensor(part)
                compact = compact_rows(rollout, rows, self.tokenizer.pad_token_id)
                for target, model in zip(out, (self.policy, reference.model), strict=True):
                    values, _ = response_logprobs(model, compact)
                    target[rows, : values.size(1)] = values
        return out[0], out[1]

    # ---------------------------------------------------------------- the table

    def _finish_evaluation(self, stage: str) -> None:
        problems = [problem for problem in all_gather_object(self._eval_problem) if problem]
        self._eval_problem = None
        if problems:
            raise ValueError(problems[0])
        rows = [row for part in all_gather_object(self._eval_rows) for row in part]
        self._eval_rows = []
        if not rows:
            return
        rows.sort(key=lambda row: (row.get("sample", 0), row.get("row", 0)))
        self.log_values(
            {f"{stage}/{k}": v for k, v in evaluation_means(rows, ["score", *self.eval_rewards]).items()},
            prog_bar=(f"{stage}/score",),
        )
        if rank() == 0 and not self.trainer.sanity_checking:
            folder = run_directory(self.trainer) / "evaluations"
            write_rows(folder / f"{stage}-step{self.global_step:06d}.jsonl", rows)
