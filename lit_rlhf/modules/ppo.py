"""PPO for language models: four models, one optimizer, one Lightning epoch per iteration.

The life of an iteration, and the method to override for each stage (docs/extending.md)::

    collect: prompts -> generate -> score_rollout -> shape_rewards -> estimate_advantages            (no gradient)
    training_step: policy_token_loss + critic_token_loss + entropy_token_loss + ptx_token_loss -> one optimizer step
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_rlhf.callbacks.hooks import emit_phase, emit_rollout, emit_validation, writes_files
from lit_rlhf.config import ModelConfig, ScheduleConfig, group
from lit_rlhf.distributed import all_gather_object, any_rank, rank, run_together
from lit_rlhf.evaluation.opponent import Opponent
from lit_rlhf.functional.checks import two_columns
from lit_rlhf.functional.losses import entropy_loss, lm_loss, normalized_sum
from lit_rlhf.functional.masking import masked_whiten
from lit_rlhf.functional.moments import RunningMoments
from lit_rlhf.functional.sampler import truncated_weights
from lit_rlhf.functional.shaping import penalize_missing_eos, shape_scores, token_rewards
from lit_rlhf.models.compact import compact_rows
from lit_rlhf.models.cpu import release_freed_memory
from lit_rlhf.models.export import export_policy, export_policy_adapter
from lit_rlhf.models.frozen import FrozenModel
from lit_rlhf.models.loading.checks import check_context
from lit_rlhf.models.loading.objects import ModelLike, model_source
from lit_rlhf.models.loading.pretrained import load_config
from lit_rlhf.models.scoring import model_columns, response_logprobs, response_values, text_logprobs
from lit_rlhf.models.uses import ModelUse, PassSizes, rollout_sizes
from lit_rlhf.modules.base import BaseModule, loading_of, trained_parameters
from lit_rlhf.modules.prompt_evaluator import PromptEvaluator
from lit_rlhf.modules.trainer_loop import run_directory
from lit_rlhf.ppo.collector import ExperienceCollector
from lit_rlhf.ppo.config import CriticConfig, LossConfig, PPOOptimizerConfig, ReferenceConfig, ShapingConfig
from lit_rlhf.ppo.estimators import GAE, AdvantageEstimator
from lit_rlhf.ppo.kl_controller import FixedKL, KLController
from lit_rlhf.ppo.losses import ClippedSurrogate, ClippedValueLoss, CriticLoss, PolicyLoss
from lit_rlhf.ppo.metrics import UpdateSums, rollout_metrics, updated_moments
from lit_rlhf.ppo.minibatch import Minibatch, plan_updates, ptx_share, scoring_micro_batches
from lit_rlhf.ppo.models import PPOModels, ReferenceConfigLike, reference_config
from lit_rlhf.ppo.options import check_options, check_parts
from lit_rlhf.ppo.plan import BatchingConfig
from lit_rlhf.rewards.base import NonFiniteScoreError
from lit_rlhf.rewards.python import RewardLike, as_reward, as_rewards
from lit_rlhf.rollout.engine import RolloutEngine
from lit_rlhf.rollout.requests import generation_request, reward_request
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import (
    DeviceBatch,
    Experience,
    PromptBatch,
    RewardOutput,
    RewardRequest,
    Rollout,
    ScoredRollout,
    TextBatch,
)

SkipReason = Literal["score", "column", "target_kl"]
"""Why the rest of an iteration's updates are not made: scores or model outputs that are not finite, or target KL."""

MANY_CUT = 0.3
"""Share of responses cut at the length limit from which a run says so."""


class PPOModule(BaseModule, ExperienceCollector):
    """PPO with every detail of the paper's Figure 5 as an option (docs/ppo.md).

    Args:
        policy: Folder or hub name of the SFT model; in Python also the pair (model, tokenizer), which is copied.
        reward: Source of scores; in Python also a function (see :class:`PythonReward`).
        reference: The frozen reference (a path alone is enough); None for none, where nothing needs it.
        critic: Where the critic comes from; unused by critic-free estimators.
        sampling: How responses are drawn in training.
        eval_sampling: How they are drawn in validation, test and prediction; default ``sampling``.
        shaping: From raw to shaped scores.
        policy_loss: What the policy minimizes; default :class:`ClippedSurrogate`.
        critic_loss: What the critic minimizes; default :class:`ClippedValueLoss`, for estimators with a critic.
        loss: Weights of the terms, and what they are computed from.
        estimator: Advantage estimator; default :class:`GAE`.
        kl_controller: Coefficient of the token-level KL penalty; default :class:`FixedKL`.
        optimizer: AdamW.
        schedule: Learning rate over steps.
        eval_rewards: Further scores logged as ``val/<name>``, never trained on.
        opponent: Saved responses, e.g. SFT's, and a judge: ``val/win_rate`` against them (ties half), ``val/tie_rate``.
        engine: What generates; default :class:`TransformersEngine`.
        model: How models are loaded.
        on_non_finite: `stop` or `skip`; see ``BaseModule``.

    In Python every group of options may be a dict: ``sampling={"temperature": 0.7}``.

    Attributes:
        iteration: Number of the iteration under way, from 0.
        rollout_metrics: Means over the last rollout, equal on all ranks (docs/metrics.md).
        skip_reason: Why the updates of this iteration are not made, or None.

    Raises:
        ValueError: If options do not fit each other.
    """

    optimizer_kind = PPOOptimizerConfig

    def __init__(
        self,
        policy: ModelLike,
        reward: RewardLike,
        reference: ReferenceConfigLike = ReferenceConfig(),  # noqa: B008
        critic: CriticConfig = CriticConfig(),  # noqa: B008
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
        eval_sampling: SamplingConfig | None = None,
        shaping: ShapingConfig = ShapingConfig(),  # noqa: B008
        policy_loss: PolicyLoss | None = None,
        critic_loss: CriticLoss | None = None,
        loss: LossConfig = LossConfig(),  # noqa: B008
        estimator: AdvantageEstimator | None = None,
        kl_controller: KLController | None = None,
        optimizer: PPOOptimizerConfig = PPOOptimizerConfig(),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(kind="inverse_sqrt"),  # noqa: B008
        eval_rewards: dict[str, RewardLike] | None = None,
        opponent: Opponent | None = None,
        engine: RolloutEngine | None = None,
        model: ModelConfig = ModelConfig(),  # noqa: B008
        on_non_finite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__(model=model, optimizer=optimizer, schedule=schedule, on_non_finite=on_non_finite)
        parts = {"estimator": estimator, "kl_controller": kl_controller, "engine": engine}
        check_parts(policy_loss=policy_loss, critic_loss=critic_loss, **parts)
        measured = as_rewards(eval_rewards, "eval_rewards")
        self.reward, self.engine = as_reward(reward, "reward"), engine or TransformersEngine()
        self.estimator, self.kl_controller = estimator or GAE(), kl_controller or FixedKL()
        self.policy_loss, self.loss = policy_loss or ClippedSurrogate(), group(LossConfig, loss, "loss")
        self.critic_loss = critic_loss or ClippedValueLoss()
        self.sampling = group(SamplingConfig, sampling, "sampling")
        self.eval_sampling = group(SamplingConfig, eval_sampling or self.sampling, "eval_sampling")
        self.shaping = group(ShapingConfig, shaping, "shaping")
        self.models = PPOModels(
            model_source(policy, "policy"),
            reference=reference_config(reference),
            critic=group(CriticConfig, critic, "critic") if self.estimator.needs_critic else None,
            reward=self.reward,
            model=self.model_config,
        )
        check_options(
            loss=self.loss,
            policy_loss=self.policy_loss,
            critic_loss=critic_loss,
            estimator=self.estimator,
            kl_controller=self.kl_controller,
            engine=self.engine,
            has_reference=self.models.reference is not None,
            model=self.model_config,
        )
        self.evaluator = PromptEvaluator(
            sampling=self.eval_sampling,
            rewards={"score": self.reward, **measured},
            opponent=opponent,
            logits_gib=self.model_config.logits_gib,
        )
        self.policy: Any = None
        self.critic: Any = None
        self.reference: FrozenModel[nn.Module] | None = None
        self._begin()

    def _begin(self) -> None:
        """What an iteration leaves for the next one, before the first."""
        self.moments = RunningMoments()
        self.iteration, self.phase = 0, "idle"
        self.rollout_metrics: dict[str, float] = {}
        self.skip_reason: SkipReason | None = None
        self.early_stopped_updates = 0
        self._told_of_cuts = False
        self._timings: dict[str, float] = {}
        self._longest_row = 0
        self._updating: Minibatch | None = None

    # ---------------------------------------------------------------- models

    def load_models(self) -> None:
        """Load what the stage needs: prediction only generates, evaluation has no critic."""
        predicting = self._trainer is not None and self.trainer.predicting
        training = self._trainer is None or self.trainer.training or self.trainer.sanity_checking
        self.evaluator.prepare()
        self.tokenizer = self.models.load_tokenizer()
        self.models.check_vocabularies(self.tokenizer, with_critic=training, with_reference=not predicting)
        self.policy = self.build_policy()
        if training:
            self.critic = self.build_critic()
        if not predicting:
            self.reference = self.build_reference()
            self.evaluator.setup(device=self.target_device, tokenizer=self.tokenizer)
        self.engine.setup(tokenizer=self.tokenizer, device=self.target_device)

    def transformers_models(self) -> list[nn.Module]:
        """The reference, too: beside the policy's kernels its own would give KL that is only rounding."""
        return [self] if self.reference is None else [self, self.reference.model]

    def build_policy(self) -> Any:
        """The trainable policy, a causal language model of the transformers library; override to bring your own."""
        return self.models.build_policy()

    def build_reference(self) -> FrozenModel[nn.Module] | None:
        """The frozen reference, or None for none; ``self.policy`` is there. Override to bring your own."""
        return self.models.build_reference(self.policy)

    def build_critic(self) -> nn.Module | None:
        """The trainable critic, or None for none; ``self.policy`` is there. Override to bring your own.

        Called as ``critic(input_ids, at=positions)`` with rows ``(b, L)`` int64 and flat positions ``(N,)`` int64, it
        gives values ``(N,)``, as :class:`~lit_rlhf.models.scalar.ScalarModel` does.
        """
        return self.models.build_critic(self.policy, device=self.target_device)

    def parameter_groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """`policy` and, with a critic, `critic`."""
        groups = {"policy": (trained_parameters(self.policy), self.optimizer_config.lr)}
        if self.critic is not None:
            assert isinstance(self.optimizer_config, PPOOptimizerConfig)
            groups["critic"] = (trained_parameters(self.critic), self.optimizer_config.critic_lr)
        return groups

    def sources(self) -> dict[str, str]:
        """What checkpoints say of where the parts came from."""
        return self.models.sources(with_critic=self.critic is not None)

    def part_loading(self) -> dict[str, dict[str, Any]]:
        """See ``BaseModule``."""
        parts, critic = super().part_loading(), self.models.critic
        if "critic" in parts and critic is not None:
            parts["critic"] = loading_of(self.models.critic_loading, critic.num_layers)
        return parts

    def memory_models(self) -> list[ModelUse]:
        """Policy, reference, the models of all rewards, and the critic where the estimator needs one."""
        rewards = [use for reward in self.evaluator.rewards.values() for use in reward.memory_models()]
        return [*self.models.memory_models(), *rewards]

    def pass_sizes(self, data: Any, *, ranks: int, device: str) -> PassSizes:
        """Passes over prompts and responses as long as they may be."""
        batching: BatchingConfig = data.batching
        return rollout_sizes(
            prompt=data.max_prompt_length,
            response=self.sampling.max_response_length,
            rollout_rows=batching.rollout_batch_size // ranks,
            update_rows=batching.minibatch_size // ranks,
            pass_tokens=batching.token_budget(device),
            limits=self.engine.limits(device),
            text_ratio=data.ptx.batch_ratio if data.ptx else 0.0,
            text_width=data.ptx.max_length if data.ptx else 0,
        )

    def export(self, path: str | Path) -> None:
        """Write the policy (with `adapter`, the adapter) and its tokenizer as a Hugging Face folder; rank 0 writes."""
        self.check_loaded()
        if rank() == 0:
            write = export_policy if self.model_config.adapter is None else export_policy_adapter
            write(self.policy, self.tokenizer, path, template=self.template)

    # ---------------------------------------------------------------- collecting experience

    @property
    def group_size(self) -> int:
        """See ``ExperienceCollector``: the estimator's."""
        return self.estimator.group_size

    def response_length(self, *, training: bool) -> int:
        """See ``ExperienceCollector``."""
        return (self.sampling if training else self.eval_sampling).max_response_length

    def check_context(self, total_length: int) -> None:
        """See ``ExperienceCollector``."""
        self._longest_row = max(self._longest_row, total_length)
        trust = self.model_config.trust_remote_code
        check_context(load_config(self.models.policy_path, trust_remote_code=trust), total_length)

    def collect(
        self, prompts: PromptBatch, uniforms: Tensor, *, batching: BatchingConfig, iteration: int
    ) -> Experience:
        """See ``ExperienceCollector``: generate, score, shape, estimate.

        The first pass's micro-batches are also the ones that are scored, so that ratios start at 1 exactly.
        """
        self.iteration, self.skip_reason, self._timings = iteration, None, {}
        self.policy.eval()
        release_freed_memory(self.device, pass_tokens=batching.token_budget(self.device))
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            # 1. Generate: one response per prompt and group member.
            with self.generating(), self._in_phase("rollout"):
                rollout = run_together(lambda: self.generate(prompts, uniforms, self.sampling))
            with self._in_phase("scoring"):
                # 2. Score: log-probabilities, values (detail 8), raw scores.
                micro_batches = scoring_micro_batches(plan_updates(rollout, batching, iteration), batching)
                scored, entropy = self.score_rollout(rollout, micro_batches)
                scored = self._finite(scored)
                # The moments include this iteration before they normalize it (detail 5, eq. 18).
                if self.skip_reason is None:
                    self.moments = updated_moments(self.moments, scored.scores)
                # 3. Shape: normalize and clip the score, KL penalty per token (details 1, 4, 5; eq. 18-19).
                rewards = self.shape_rewards(scored)
                # 4. Advantages and the critic's targets (detail 10, eq. 9).
                given = self.estimate_advantages(scored, rewards)
                advantages, returns = two_columns(f"`estimate_advantages` ({_name(self.estimator)})", given, rewards)
        experience = Experience(**scored.as_dict(), rewards=rewards, advantages=advantages, returns=returns)
        self.train()
        self._report(experience, entropy)
        emit_phase(self.trainer, self, "update")
        return experience

    def generate(self, prompts: PromptBatch, uniforms: Tensor, sampling: SamplingConfig) -> Rollout:
        """Responses of the current policy, in training and in evaluation.

        Args:
            prompts: Left-padded, ``(B, P)``.
            uniforms: The only source of randomness, ``(B, T)`` float64.
            sampling: Which distribution to draw from; T is its ``max_response_length``.
        """
        return self.engine.generate(
            generation_request(self.policy, self.tokenizer, prompts, uniforms, sampling, longest_row=self._longest_row)
        )

    @contextmanager
    def generating(self) -> Iterator[None]:
        """A series of :meth:`generate`: the engine learns of the weights before it and rests after it."""
        started = time.perf_counter()
        self.engine.sync(self.policy)
        self._timings["time/sync"] = time.perf_counter() - started
        yield
        self.engine.rest()

    def score_rollout(self, rollout: Rollout, micro_batches: list[Tensor]) -> tuple[ScoredRollout, Tensor]:
        """What the four models say of the responses.

        With `old_logprobs: sampler` the policy itself is not asked, if the engine gave the entropies too.

        Args:
            rollout: This rank's responses, B rows.
            micro_batches: Rows (int64) of each forward pass; those of the first pass of updates.

        Returns:
            The scored rollout, and the policy's entropy before each response token, ``(B, T)`` fp32, nats.
        """
        sampled = self.loss.old_logprobs == "sampler"
        ask_policy = not sampled or rollout.sampler_entropies is None
        with self._reference_model() as reference:
            columns = model_columns(
                rollout,
                micro_batches,
                policy=self.policy if ask_policy else None,
                reference=reference,
                critic=self.critic,
                pad_token_id=self.tokenizer.pad_token_id,
                logits_gib=self.model_config.logits_gib,
            )
        old, entropy = columns.logprobs, columns.entropy
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
            ref_logprobs=columns.ref_logprobs,
            old_values=columns.values,
            scores=output.scores.float().to(self.device),
            token_scores=torch.zeros_like(old) if token_scores is None else token_scores,
        )
        return scored, entropy

    def score_responses(self, rollout: Rollout) -> RewardOutput:
        """The reward's scores, ``(B,)``; one that is not finite stops all ranks, naming the prompt, or skips.

        Any other fault of a reward is raised, on all ranks, whatever ``on_non_finite`` says.
        """
        output, problem = run_together(partial(self._scores_or_problem, rollout))
        problems = [p for p in all_gather_object(problem) if p]
        if not problems and output is not None:
            return output
        if self.on_non_finite == "stop":
            self.fail_non_finite("score", f"{problems[0]} ")
        self.skip_reason = "score"  # the zeros below enter neither the moments nor the log
        return RewardOutput(scores=torch.zeros(len(rollout), dtype=torch.float32, device=self.device))

    def _scores_or_problem(self, rollout: Rollout) -> tuple[RewardOutput | None, str | None]:
        try:
            return self.reward(self.reward_request(rollout)), None
        except NonFiniteScoreError as error:
            return None, str(error)

    def reward_request(self, rollout: Rollout) -> RewardRequest:
        """The responses as rewards see them: ids, texts and raw records."""
        return reward_request(self.tokenizer, rollout, template=self.template)

    def shape_rewards(self, scored: ScoredRollout) -> Tensor:
        """Rewards per token: shaped score at the last token, KL penalty at every token (eq. 18-19).

        Args:
            scored: This rank's B responses with raw ``scores`` ``(B,)``; the moments already include them.

        Returns:
            ``(B, T)`` fp32, zero outside the response.
        """
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
        ref = scored.ref_logprobs
        if ref is None:  # the penalty is 0 then, and so is the distance to oneself
            if self.kl_controller.value != 0:
                raise ValueError(f"The KL coefficient ({self.kl_controller.value}) needs a reference; there is none.")
            ref = scored.old_logprobs
        return token_rewards(
            scores,
            scored.old_logprobs,
            ref,
            scored.response_mask,
            kl_coef=self.kl_controller.value,
            token_scores=scored.token_scores,
        )

    def estimate_advantages(self, scored: ScoredRollout, rewards: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages and the critic's targets.

        Args:
            scored: This rank's B responses; the members of a group are consecutive rows.
            rewards: Per token, ``(B, T)`` fp32.

        Returns:
            ``(advantages, returns)``, each ``(B, T)`` fp32 and zero outside the response.
        """
        return self.estimator.estimate(scored, rewards)

    def _report(self, experience: Experience, entropy: Tensor) -> None:
        """Metrics of the iteration; controller and callbacks learn from it unless it is skipped."""
        sound = self.skip_reason is None
        metrics = rollout_metrics(experience, entropy, moments=self.moments, times=self._timings, sound=sound)
        self.rollout_metrics = {**metrics, "kl_coef": self.kl_controller.value, "iteration": float(self.iteration)}
        self._tell_of_cuts(metrics.get("rollout/cut_rate", 0.0))
        if sound and "rollout/kl_sequence" in metrics:
            self.kl_controller.update(metrics["rollout/kl_sequence"], len(experience) * self.trainer.world_size)
        if sound:
            emit_rollout(self.trainer, self, experience)

    def _tell_of_cuts(self, share: float) -> None:
        """Say, once a run, that many responses do not end by themselves, unless the reward or the shaping prices it."""
        shaping = self.shaping
        priced = (shaping.missing_eos_penalty, shaping.missing_eos_score) != (None, None)
        if share <= MANY_CUT or self._told_of_cuts or priced or self.reward.prices_missing_eos:
            return
        self._told_of_cuts = True
        limit = f"`sampling.max_response_length` ({self.sampling.max_response_length})"
        rank_zero_warn(
            f"{share:.0%} of the responses of iteration {self.iteration} were cut at {limit}: the reward scores "
            "unfinished text. Raise it, or take something off such scores with `shaping.missing_eos_penalty`. "
            "`rollout/cut_rate` counts them; this is said once."
        )

    @contextmanager
    def _reference_model(self) -> Iterator[nn.Module | None]:
        if self.reference is None:
            yield None
        else:
            with self.reference.on(self.device) as frozen:
                yield frozen.model

    def _finite(self, scored: ScoredRollout) -> ScoredRollout:
        """The rollout itself; or with `on_non_finite: skip` zeros for what is not finite, the iteration skipped.

        Raises:
            NonFiniteError: With `on_non_finite: stop`, on all ranks, naming the column.
        """
        names = ("scores", "token_scores", "old_logprobs", "ref_logprobs", "old_values")
        columns = {name: column for name in names if (column := getattr(scored, name)) is not None}
        if self.on_non_finite == "stop":
            for name, column in columns.items():
                self.check_finite(name, column)
            return scored
        bad = any(not bool(column.isfinite().all()) for column in columns.values())
        if not any_rank(bad, self.device):
            return scored
        self.skip_reason = "column"
        return dataclasses.replace(scored, **{k: v.nan_to_num(0.0, 0.0, 0.0) for k, v in columns.items()})

    @contextmanager
    def _in_phase(self, phase: str) -> Iterator[None]:
        emit_phase(self.trainer, self, phase)
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._timings[f"time/{phase}"] = time.perf_counter() - started

    # ---------------------------------------------------------------- updating

    def training_step(self, batch: DeviceBatch[Minibatch], batch_idx: int) -> None:
        """One minibatch, one optimizer step; none where the iteration is skipped or ended early."""
        minibatch, started = self.content(batch, Minibatch), time.perf_counter()
        if minibatch.position == 0:
            self.log_values(self.rollout_metrics, prog_bar=("rollout/score", "rollout/kl"))
        if self.skip_reason is not None:
            self._log_update_not_made()
            return
        self._updating, sums = minibatch, UpdateSums(self.device)
        parts = range(len(minibatch.micro_batches))
        result = self.optimize([partial(self.minibatch_losses, minibatch, part, sums) for part in parts])
        metrics = sums.means(minibatch)
        if self.loss.target_kl is not None and metrics["update/approx_kl"] > self.loss.target_kl:
            self.skip_reason = "target_kl"
        if result is None:
            return
        metrics["update/grad_norm"] = float(result["grad_norm"])
        self._timings["time/update"] = self._timings.get("time/update", 0.0) + time.perf_counter() - started
        self.log_values({**metrics, **self.learning_rates(), "time/update": self._timings["time/update"]})

    def _log_update_not_made(self) -> None:
        if self.skip_reason == "target_kl":
            self.early_stopped_updates += 1
            self.log_values({"update/early_stop": float(self.early_stopped_updates)})
        else:
            self._log_skipped_update()

    def minibatch_losses(self, minibatch: Minibatch, part: int, sums: UpdateSums) -> Iterator[Tensor]:
        """A micro-batch's share in the loss of the global minibatch: the policy's, then the critic's.

        Lazily, so that on one device the policy's activations are gone before the critic's are made. Asks the hooks for
        losses per token, divides their sums by the global minibatch's tokens, and measures what is logged.

        Args:
            minibatch: This rank's rows of the update, and the global counts.
            part: Which of its micro-batches.
            sums: What is measured, over all micro-batches.
        """
        rows, config = minibatch.micro_batches[part], self.loss
        compact = compact_rows(minibatch.experience, rows, self.tokenizer.pad_token_id)
        taken = minibatch.experience.rows(rows).up_to(compact.response_mask.size(1))
        mask = taken.response_mask
        # 1. The policy's log-probabilities now, over the rows that were scored (ratio 1 before the first update).
        logprobs, entropy = response_logprobs(
            self.policy, compact, logits_gib=self.model_config.logits_gib, with_entropy=config.entropy_coef > 0
        )
        old = taken.ref_logprobs if config.old_logprobs == "reference" else taken.old_logprobs  # detail 2
        assert old is not None
        advantages = self.update_advantages(taken.advantages, taken, minibatch)
        # 2. The surrogate (detail 11; eq. 14, 15).
        given = self.policy_token_loss(logprobs, old, advantages, taken)
        per_token, clipped = two_columns(f"`policy_token_loss` ({_name(self.policy_loss)})", given, logprobs)
        if config.sampler_correction is not None:
            weights = self.sampler_weights(taken)
            per_token = per_token * weights
            sums.add_tokens("update/sampler_weight", weights, mask)
        loss = self._policy_share(per_token, mask, minibatch)
        sums.add_share("loss/policy", loss)
        sums.add_ratio(logprobs, old, mask)
        sums.add_tokens("update/clip_fraction", clipped, mask)
        sums.add_tokens("update/advantage", advantages, mask)
        sums.add_tokens("update/advantage_sq", advantages.double().square(), mask)
        # 3. Entropy (detail 3).
        if entropy is not None:
            share = config.entropy_coef * normalized_sum(
                self.entropy_token_loss(entropy, taken), mask, minibatch.num_tokens
            )
            sums.add_share("loss/entropy", share)
            sums.add_tokens("update/entropy", entropy, mask)
            loss = loss + share
        # 4. Language modeling of text (eq. 17).
        if minibatch.ptx is not None:
            text = minibatch.ptx.rows(ptx_share(len(minibatch.ptx), part, len(minibatch.micro_batches)))
            share = self._ptx_share(text, minibatch.ptx_tokens)
            sums.add_share("loss/ptx", share)
            loss = loss + config.ptx_coef * share
        yield loss
        # 5. The critic (detail 7).
        if self.critic is not None:
            values = response_values(self.critic, compact)
            given = self.critic_token_loss(values, taken)
            per_token, clipped = two_columns(f"`critic_token_loss` ({_name(self.critic_loss)})", given, values)
            share = normalized_sum(per_token, mask, minibatch.num_tokens)
            sums.add_share("loss/value", share)
            sums.add_tokens("update/value_clip_fraction", clipped, mask)
            sums.add_values(values, taken.returns, mask)
            yield config.vf_coef * share

    def sampler_weights(self, taken: Experience) -> Tensor:
        """Truncated importance weights of the policy at rollout time to the engine that drew, ``(b, t)`` fp32."""
        level, sampler = self.loss.sampler_correction, taken.sampler_logprobs
        if level is None or sampler is None:
            raise ValueError(f"`loss.sampler_correction` ({level}) needs the engine's log-probabilities: none.")
        return truncated_weights(
            taken.old_logprobs, sampler, taken.response_mask, level=level, cap=self.loss.sampler_cap
        )

    def update_advantages(self, advantages: Tensor, taken: Experience, minibatch: Minibatch) -> Tensor:
        """Whitening with the global minibatch's moments, then clipping (detail 6); both are off by default.

        Args:
            advantages: As estimated, ``(b, t)`` fp32.
            taken: The micro-batch's columns.
            minibatch: For the moments of the whole global minibatch.

        Returns:
            What the policy loss is given, ``(b, t)`` fp32.
        """
        if self.loss.whiten_advantages:
            moments = (minibatch.advantage_mean, minibatch.advantage_std**2)
            advantages = masked_whiten(advantages, taken.response_mask, moments=moments)
        if self.loss.advantage_clip is not None:
            advantages = advantages.clamp(-self.loss.advantage_clip, self.loss.advantage_clip)
        return advantages

    def policy_token_loss(
        self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, taken: Experience
    ) -> tuple[Tensor, Tensor]:
        """The policy's loss per token: ``(loss, clipped)``, both ``(b, t)``; default: the configured ``policy_loss``.

        Neither masks nor divides nor logs. Arguments and result are those of
        :meth:`PolicyLoss.__call__ <lit_rlhf.ppo.losses.PolicyLoss.__call__>`.
        """
        return self.policy_loss(logprobs, old_logprobs, advantages, taken)

    def critic_token_loss(self, values: Tensor, taken: Experience) -> tuple[Tensor, Tensor]:
        """The critic's loss per token: ``(loss, clipped)``, both ``(b, t)``; default: the configured ``critic_loss``.

        Arguments and result are those of :meth:`CriticLoss.__call__ <lit_rlhf.ppo.losses.CriticLoss.__call__>`;
        ``loss.vf_coef`` is applied afterwards.
        """
        return self.critic_loss(values, taken)

    def entropy_token_loss(self, entropy: Tensor, taken: Experience) -> Tensor:
        """The entropy bonus per token, or the release's clipped form (detail 3), before ``loss.entropy_coef``.

        The clipped form's sign is decided by the mean entropy of the whole iteration at rollout time, the same number
        for every micro-batch and rank.

        Args:
            entropy: Of the next-token distributions, ``(b, t)`` fp32, nats, with gradient.
            taken: The micro-batch's columns.
        """
        return entropy_loss(
            entropy, clip=self.loss.entropy_clip, mean_entropy=self.rollout_metrics.get("rollout/entropy")
        )

    def ptx_token_loss(self, logprobs: Tensor, text: TextBatch) -> Tensor:
        """Language-model loss per token of text (eq. 17), before ``loss.ptx_coef``.

        Args:
            logprobs: Of each token given those before it, ``(b, L - 1)`` fp32, with gradient; zero where not learned.
            text: The micro-batch's share of the text, ``(b, L)``.
        """
        return lm_loss(logprobs)

    def _policy_share(self, per_token: Tensor, mask: Tensor, minibatch: Minibatch) -> Tensor:
        if self.loss.average == "tokens":
            return normalized_sum(per_token, mask, minibatch.num_tokens)
        return normalized_sum(per_token / mask.sum(1, keepdim=True).clamp(min=1), mask, minibatch.num_responses)

    def _ptx_share(self, text: TextBatch, num_tokens: float) -> Tensor:
        if not len(text):
            return torch.zeros((), dtype=torch.float32, device=self.device)
        logprobs, mask = text_logprobs(self.policy, text, logits_gib=self.model_config.logits_gib)
        return normalized_sum(self.ptx_token_loss(logprobs, text), mask, num_tokens)

    # ---------------------------------------------------------------- validation, test, prediction

    def validation_step(self, batch: DeviceBatch[PromptBatch], batch_idx: int) -> None:
        """Answer and score a batch of held-out prompts."""
        self.evaluator.add(self.evaluator.attempt(lambda: self.evaluate_prompts(batch.content)))

    def test_step(self, batch: DeviceBatch[PromptBatch], batch_idx: int) -> None:
        """The same as validation, on the test prompts."""
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: DeviceBatch[PromptBatch], batch_idx: int) -> list[dict[str, Any]]:
        """Responses as JSON-able rows: ``prompt``, ``response``, ``ended``, ``tokens`` and the raw record."""
        return self.evaluator.attempt(lambda: self.evaluator.rows(self.reward_request(self.answer(batch.content))))

    def answer(self, prompts: PromptBatch) -> Rollout:
        """Responses under ``eval_sampling`` with the fixed evaluation seed."""
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            return self.generate(prompts, self.evaluator.uniforms(prompts), self.eval_sampling)

    def evaluate_prompts(self, prompts: PromptBatch) -> list[dict[str, Any]]:
        """One row per response: texts, token count, sums of log-probabilities, score and every evaluation reward."""
        rollout = self.answer(prompts)
        with self._reference_model() as reference, self.trainer.precision_plugin.forward_context():
            scored, rows = self.evaluator.score(
                rollout, self.reward_request(rollout), policy=self.policy, reference=reference
            )
        emit_validation(self.trainer, self, scored)
        return rows

    def on_validation_epoch_start(self) -> None:
        """Start an empty table; the engine learns of the weights."""
        self.policy.eval()
        self.evaluator.start()
        self.engine.sync(self.policy)

    def on_validation_epoch_end(self) -> None:
        """Log the means as ``val/...`` and save the rows."""
        self._finish_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """As for validation."""
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        """Log the means as ``test/...`` and save the rows."""
        self._finish_evaluation("test")

    def on_predict_epoch_start(self) -> None:
        """The engine learns of the weights."""
        self.policy.eval()
        self.evaluator.start()
        self.engine.sync(self.policy)

    def check_predictions(self) -> None:
        """End all ranks where a batch failed on one of them; called before predictions are written."""
        self.evaluator.check()

    def on_predict_epoch_end(self) -> None:
        """The engine rests; what failed on one rank ends all."""
        self.engine.rest()
        self.check_predictions()

    def _finish_evaluation(self, stage: str) -> None:
        self.engine.rest()
        kept = writes_files(self.trainer) and not self.trainer.sanity_checking
        folder = run_directory(self.trainer) / "evaluations" if kept else None
        means = self.evaluator.finish(folder, f"{stage}-step{self.global_step:06d}.jsonl")
        self.log_values({f"{stage}/{k}": v for k, v in means.items()}, prog_bar=(f"{stage}/score",))

    def teardown(self, stage: str) -> None:
        """The engine frees what it holds."""
        self.engine.close()

    # ---------------------------------------------------------------- state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See ``BaseModule``; evaluation has no critic and leaves the checkpoint's out."""
        super().on_load_checkpoint(checkpoint)
        if self.critic is None and self.estimator.needs_critic:
            state = checkpoint.get("state_dict", {})  # a ZeRO folder keeps the weights elsewhere
            checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("critic.")}

    def extra_state(self) -> dict[str, Any]:
        """Running moments, KL controller, iteration, and whether a half-used iteration's updates are made."""
        return {
            "moments": self.moments.state_dict(),
            "kl_controller": self.kl_controller.state_dict(),
            "estimator": self.estimator.state_dict(),
            "reference": self._reference_mark(),
            "iteration": self.iteration,
            "skip_reason": self.skip_reason,
            "early_stopped_updates": self.early_stopped_updates,
            "rollout_metrics": dict(self.rollout_metrics),
        }

    def _reference_mark(self) -> str | None:
        return self.reference.mark() if isinstance(self.reference, FrozenModel) else None

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """See :meth:`extra_state`.

        Raises:
            ValueError: If training is resumed with another reference: its KL would be measured against another model.
        """
        before, mark = state.get("reference"), self._reference_mark()
        fitting = self._trainer is not None and self.trainer.state.fn == "fit"
        if fitting and None not in (before, mark) and before != mark:
            raise ValueError(
                f"`reference` ('{self.models.reference_path}') is not the model that the run's KL was measured against "
                "before it was resumed: name that one as `reference`, or start a new run."
            )
        self.moments = RunningMoments.from_state(state["moments"])
        self.kl_controller.load_state_dict(dict(state["kl_controller"]))
        self.estimator.load_state_dict(dict(state.get("estimator", {})))
        self.iteration = state["iteration"]
        self.skip_reason, self.early_stopped_updates = state["skip_reason"], state["early_stopped_updates"]
        self.rollout_metrics = dict(state["rollout_metrics"])

    def describe_batch(self) -> str:
        """The first prompts of the minibatch that was being learned."""
        if self._updating is None:
            return ""
        experience = self._updating.experience
        rows = zip(experience.prompt_ids[:3], experience.prompt_mask[:3], strict=True)
        shown = "; ".join(repr(text[-120:]) for text in self.tokenizer.batch_decode([ids[keep] for ids, keep in rows]))
        return f"Prompts of rank {rank()} begin with {shown}. "

    def where(self) -> str:
        """The place in the run, for error messages."""
        return f"iteration {self.iteration}, step {self.global_step}"


def _name(part: object) -> str:
    return type(part).__name__
