"""The half of PPO before the update: an iteration's experience, without a gradient.

The stages, each a method to override::

    prompts -> generate -> score_rollout -> score_responses -> shape_rewards -> estimate_advantages
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lit_rlhf.callbacks.hooks import emit_phase, emit_rollout
from lit_rlhf.distributed import all_gather_object, any_rank
from lit_rlhf.functional.moments import RunningMoments
from lit_rlhf.functional.shaping import penalize_missing_eos, shape_scores, token_rewards
from lit_rlhf.models.compact import compact_rows
from lit_rlhf.models.cpu import release_freed_memory
from lit_rlhf.models.scoring import response_logprobs, response_values
from lit_rlhf.modules.ppo_models import FourModels
from lit_rlhf.ppo.config import LossConfig, ShapingConfig
from lit_rlhf.ppo.kl_controller import KLController
from lit_rlhf.ppo.metrics import rollout_metrics
from lit_rlhf.ppo.minibatch import plan_updates, scoring_micro_batches
from lit_rlhf.ppo.plan import BatchingConfig
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.types import Experience, PromptBatch, RewardOutput, Rollout, ScoredRollout


class ExperienceCollection(FourModels):
    """Generate, score, shape and estimate: what ``PPOModule`` does at the start of an iteration.

    Attributes:
        sampling: How responses are drawn.
        shaping: From raw to shaped scores.
        loss_config: For the source of the old log-probabilities.
        kl_controller: Coefficient of the token-level KL penalty.
        moments: Running moments of the raw scores.
        iteration: Number of the iteration under way.
    """

    sampling: SamplingConfig
    shaping: ShapingConfig
    loss_config: LossConfig
    kl_controller: KLController
    moments: RunningMoments
    iteration: int
    _left_out: bool
    _timings: dict[str, float]
    _rollout_metrics: dict[str, float]

    def collect(
        self, prompts: PromptBatch, uniforms: Tensor, *, batching: BatchingConfig, iteration: int
    ) -> Experience:
        """One iteration's experience: generate, score, shape, estimate. Called on all ranks, on their own rows.

        Args:
            prompts: This rank's prompts.
            uniforms: Random numbers of the sampler, ``(B, max_response_length)`` float64.
            batching: Sizes; the first pass's micro-batches are also the ones scored, so that ratios start at 1 exactly.
            iteration: Iteration number.
        """
        self.iteration = iteration
        self._left_out = False
        self._timings = {}
        self.policy.eval()
        release_freed_memory(self.device, pass_tokens=batching.token_budget(self.device))
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            with self._in_phase("rollout"):
                rollout = self.generate(prompts, uniforms, self.sampling)
            with self._in_phase("scoring"):
                micro_batches = scoring_micro_batches(plan_updates(rollout, batching, iteration), batching)
                scored, entropy = self.score_rollout(rollout, micro_batches)
                scored = self._finite(scored)
                if not self._left_out:
                    self.moments = self._updated_moments(scored.scores)
                rewards = self.shape_rewards(scored)
                advantages, returns = self.estimate_advantages(scored, rewards)
        experience = Experience(**scored.as_dict(), rewards=rewards, advantages=advantages, returns=returns)
        self.train()
        metrics = rollout_metrics(
            experience, entropy, moments=self.moments, times=self._timings, scored=not self._left_out
        )
        self._rollout_metrics = {**metrics, "kl_coef": self.kl_controller.value, "iteration": float(iteration)}
        self.kl_controller.update(self._rollout_metrics["rollout/kl_sequence"], batching.rollout_batch_size)
        emit_rollout(self.trainer, self, experience)
        emit_phase(self.trainer, self, "update")
        return experience

    def score_rollout(self, rollout: Rollout, micro_batches: list[Tensor]) -> tuple[ScoredRollout, Tensor]:
        """What the four models say of the responses, and the policy's token entropies ``(B, T)``.

        With `old_logprobs: sampler` the policy itself is not asked, if the engine gave the entropies too.
        """
        shape = rollout.response_mask.shape
        old, entropy, values, ref = (torch.zeros(shape, device=self.device) for _ in range(4))
        sampled = self.loss_config.old_logprobs == "sampler"
        ask_policy = not sampled or rollout.sampler_entropies is None
        with self.reference.on(self.device) as reference:
            for rows in micro_batches:
                compact = compact_rows(rollout, rows, self.tokenizer.pad_token_id)
                width = compact.response_mask.size(1)
                if ask_policy:
                    logprobs, token_entropy = response_logprobs(self.policy, compact, with_entropy=True)
                    assert token_entropy is not None
                    old[rows, :width], entropy[rows, :width] = logprobs, token_entropy
                ref[rows, :width] = response_logprobs(reference.model, compact)[0]
                if self.critic is not None:
                    values[rows, :width] = response_values(self.critic, compact)
        if sampled:
            if rollout.sampler_logprobs is None:
                raise ValueError(f"{type(self.engine).__name__} gives no sampler log-probabilities.")
            old = rollout.sampler_logprobs
            entropy = entropy if rollout.sampler_entropies is None else rollout.sampler_entropies
        output = self.score_responses(rollout)
        token_scores = output.token_scores
        scored = ScoredRollout(
            **rollout.as_dict(),
            old_logprobs=old,
            ref_logprobs=ref,
            old_values=values,
            scores=output.scores.float().to(self.device),
            token_scores=torch.zeros(shape, device=self.device) if token_scores is None else token_scores,
        )
        return scored, entropy

    def score_responses(self, rollout: Rollout) -> RewardOutput:
        """The reward's scores; one that is not finite stops all ranks, naming the prompt, or skips the iteration."""
        output, problem = None, None
        try:
            output = self.reward(self.reward_request(rollout))
        except ValueError as error:
            problem = str(error)
        problems = [p for p in all_gather_object(problem) if p]
        if not problems and output is not None:
            return output
        if self.on_non_finite == "stop":
            self.fail_non_finite("score", f"{problems[0]} ")
        self._left_out = True  # the zeros below enter neither the moments nor the log
        return RewardOutput(scores=torch.zeros(len(rollout), device=self.device))

    def _finite(self, scored: ScoredRollout) -> ScoredRollout:
        """The rollout itself; or with `on_non_finite: skip` zeros for what is not finite, the iteration left out.

        Raises:
            NonFiniteError: With `on_non_finite: stop`, on all ranks, naming the column.
        """
        names = ("scores", "token_scores", "old_logprobs", "ref_logprobs", "old_values")
        if self.on_non_finite == "stop":
            for name in names:
                self.check_finite(name, getattr(scored, name))
            return scored
        columns = {name: getattr(scored, name) for name in names}
        bad = any(not bool(column.isfinite().all()) for column in columns.values())
        if not any_rank(bad, self.device):
            return scored
        self._left_out = True
        return dataclasses.replace(scored, **{k: v.nan_to_num(0.0, 0.0, 0.0) for k, v in columns.items()})

    def _updated_moments(self, scores: Tensor) -> RunningMoments:
        own = RunningMoments().update_from(scores)
        moments = self.moments
        for count, mean, m2 in all_gather_object((own.count, own.mean, own.m2)):
            moments = moments.update(count, mean, m2)
        return moments

    def shape_rewards(self, scored: ScoredRollout) -> Tensor:
        """Token rewards ``(B, T)``: shaped score at the last token, KL penalty at every token (eq. 18-19)."""
        shaping = self.shaping
        scores = penalize_missing_eos(
            scored.scores,
            scored.ended,
            penalty=shaping.missing_eos_penalty,
            replacement=shaping.missing_eos_score,
        )
        scores = shape_scores(
            scores, moments=self.moments, normalize=shaping.normalize, scale=shaping.scale, clip=shaping.clip
        )
        return token_rewards(
            scores,
            scored.old_logprobs,
            scored.ref_logprobs,
            scored.response_mask,
            kl_coef=self.kl_controller.value,
            token_scores=scored.token_scores,
        )

    def estimate_advantages(self, scored: ScoredRollout, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """``(advantages, returns)``, each ``(B, T)``."""
        return self.estimator.estimate(scored, rewards)

    @contextmanager
    def _in_phase(self, phase: str) -> Iterator[None]:
        emit_phase(self.trainer, self, phase)
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._timings[f"time/{phase}"] = time.perf_counter() - started
