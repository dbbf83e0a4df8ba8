"""PPO for language models: four models, one optimizer, one Lightning epoch an iteration.

The life of an iteration, and the method to override for each stage::

    prompts -> generate -> score_rollout -> shape_rewards -> estimate_advantages   (collect, no gradient)
            -> policy_loss + critic_loss + ptx_loss -> one optimizer step          (training_step, one minibatch)

The first line is in ``ppo_collection.py``, the second here; validation is in ``ppo_evaluation.py``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_rlhf.config import ModelConfig, ScheduleConfig
from lit_rlhf.distributed import rank
from lit_rlhf.functional.losses import clipped_policy_loss, entropy_term, kl_penalty_policy_loss, lm_loss, value_loss
from lit_rlhf.functional.masking import masked_whiten
from lit_rlhf.functional.moments import RunningMoments
from lit_rlhf.models.compact import CompactRows, compact_rows
from lit_rlhf.models.frozen import FrozenModel
from lit_rlhf.models.scoring import response_logprobs, response_values, text_logprobs
from lit_rlhf.models.uses import ModelUse, PassSizes, rollout_sizes
from lit_rlhf.modules.ppo_collection import ExperienceCollection
from lit_rlhf.modules.ppo_evaluation import PromptEvaluation
from lit_rlhf.modules.ppo_models import critic_path
from lit_rlhf.modules.ptx import PTXText
from lit_rlhf.ppo.config import (
    CriticConfig,
    FrozenConfig,
    LossConfig,
    PPOOptimizerConfig,
    PTXConfig,
    ShapingConfig,
)
from lit_rlhf.ppo.estimators import GAE, AdvantageEstimator
from lit_rlhf.ppo.kl_controller import FixedKL, KLController
from lit_rlhf.ppo.metrics import UpdateSums
from lit_rlhf.ppo.minibatch import Minibatch
from lit_rlhf.ppo.plan import BatchingConfig
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rollout.engine import RolloutEngine
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import DeviceBatch, Experience, TextBatch


class PPOModule(ExperienceCollection, PromptEvaluation):
    """PPO with every detail of the paper's Figure 5 as an option (docs/ppo.md).

    Args:
        policy: Folder or hub name of the SFT model.
        reward: Source of scores.
        reference: Folder or hub name of the reference; default ``policy``.
        critic: Where the critic comes from; unused by critic-free estimators.
        sampling: How responses are drawn in training.
        eval_sampling: How they are drawn in validation, test and prediction; default ``sampling``.
        shaping: From raw to shaped scores.
        loss: Terms of the loss.
        estimator: Advantage estimator.
        kl_controller: Coefficient of the token-level KL penalty.
        optimizer: AdamW.
        schedule: Learning rate over steps.
        ptx: Language-model loss beside the PPO loss.
        eval_rewards: Further scores logged as ``val/<name>``, never trained on.
        engine: What generates.
        frozen: Placement and dtype of the reference.
        model: How models are loaded.
        on_non_finite: `stop` or `skip`; see ``BaseModule``.

    Raises:
        ValueError: If options do not fit each other.
    """

    def __init__(
        self,
        policy: str,
        reward: Reward,
        reference: str | None = None,
        critic: CriticConfig = CriticConfig(),  # noqa: B008
        sampling: SamplingConfig = SamplingConfig(),  # noqa: B008
        eval_sampling: SamplingConfig | None = None,
        shaping: ShapingConfig = ShapingConfig(),  # noqa: B008
        loss: LossConfig = LossConfig(),  # noqa: B008
        estimator: AdvantageEstimator | None = None,
        kl_controller: KLController | None = None,
        optimizer: PPOOptimizerConfig = PPOOptimizerConfig(),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(kind="inverse_sqrt"),  # noqa: B008
        ptx: PTXConfig | None = None,
        eval_rewards: dict[str, Reward] | None = None,
        engine: RolloutEngine | None = None,
        frozen: FrozenConfig = FrozenConfig(),  # noqa: B008
        model: ModelConfig = ModelConfig(),  # noqa: B008
        on_non_finite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__(model=model, optimizer=optimizer, schedule=schedule, on_non_finite=on_non_finite)
        self.policy_path = policy
        self.reference_path = reference or policy
        self.critic_config = critic
        self.sampling = sampling
        self.eval_sampling = eval_sampling or sampling
        self.shaping = shaping
        self.loss_config = loss
        self.estimator = estimator or GAE()
        self.kl_controller = kl_controller or FixedKL()
        self.critic_lr = optimizer.critic_lr
        self.ptx = ptx
        self.reward = reward
        self.eval_rewards = eval_rewards or {}
        self.engine = engine or TransformersEngine()
        self.frozen_config = frozen
        self._check_options()
        self.moments = RunningMoments()
        self.iteration = 0
        self.phase = "idle"
        self.policy: Any = None
        self.critic: Any = None
        self._reference: FrozenModel[nn.Module] | None = None
        self._ptx_text: PTXText | None = None
        self._rollout_metrics: dict[str, float] = {}
        self._timings: dict[str, float] = {}
        self._left_out = False
        self._updating: Minibatch | None = None

    def _check_options(self) -> None:
        loss, needs_critic = self.loss_config, self.estimator.needs_critic
        if not needs_critic and loss.value_clip_range is not None:
            raise ValueError(
                f"`loss.value_clip_range` ({loss.value_clip_range}) needs a critic, which "
                f"{type(self.estimator).__name__} does not use: set it to null."
            )
        if loss.old_logprobs == "reference" and loss.target_kl is not None:
            raise ValueError("`loss.target_kl` measures the old policy, `loss.old_logprobs: reference` has none.")
        if loss.old_logprobs == "sampler" and not getattr(self.engine, "sampler_logprobs", True):
            raise ValueError("`loss.old_logprobs: sampler` needs an engine with `sampler_logprobs: true`.")

    def memory_models(self) -> list[ModelUse]:
        """Policy, reference, the models of all rewards, and the critic where the estimator needs one."""
        loading, frozen = self.model_config, self.frozen_config
        policy = ModelUse(role="policy", path=self.policy_path, causal=True, trained=True, loading=loading)
        reference = ModelUse(
            role="reference", path=self.reference_path, causal=True, loading=loading,
            dtype=frozen.dtype, placement=frozen.placement,
        )  # fmt: skip
        rewards = [use for reward in (self.reward, *self.eval_rewards.values()) for use in reward.memory_models()]
        if not self.estimator.needs_critic:
            return [policy, reference, *rewards]
        critic = ModelUse(role="critic", path=critic_path(self), causal=False, trained=True, loading=loading)
        return [policy, reference, *rewards, critic]

    def pass_sizes(self, data: Any, *, ranks: int, device: str) -> PassSizes:
        """Passes over prompts and responses as long as they may be."""
        batching: BatchingConfig = data.batching
        return rollout_sizes(
            prompt=data.max_prompt_length,
            response=self.sampling.max_response_length,
            rollout_rows=batching.rollout_batch_size // ranks,
            update_rows=batching.minibatch_size // ranks,
            pass_tokens=batching.token_budget(device),
            cache_tokens=getattr(self.engine, "max_batch_tokens", None),
            prefill_tokens=getattr(self.engine, "prefill_tokens", None),
            text_ratio=self.ptx.batch_ratio if self.ptx else 0.0,
            text_width=self.ptx.max_length if self.ptx else 0,
        )

    def ptx_batches(self, batching: BatchingConfig, iteration: int) -> list[tuple[TextBatch, float]]:
        """The text beside each update of an iteration, or nothing."""
        if self._ptx_text is None:
            return []
        return self._ptx_text.batches(batching, iteration)

    # ---------------------------------------------------------------- updating

    def training_step(self, batch: DeviceBatch[Minibatch], batch_idx: int) -> None:
        """One minibatch, one optimizer step."""
        minibatch = batch.content
        started = time.perf_counter()
        if minibatch.position == 0:
            self.log_values(self._rollout_metrics, prog_bar=("rollout/score", "rollout/kl"))
        if self._left_out:
            self.skipped_updates += 1
            self.log_values({"update/skipped": float(self.skipped_updates)})
            return
        self._updating = minibatch
        sums = UpdateSums(self.device)
        result = self.optimize(
            [
                lambda rows=rows, part=part: self.minibatch_losses(minibatch, rows, sums, part)  # type: ignore[misc]
                for part, rows in enumerate(minibatch.micro_batches)
            ]
        )
        metrics = sums.means(minibatch)
        limit = self.loss_config.target_kl
        self._left_out = limit is not None and metrics["update/approx_kl"] > limit
        if result is None:
            return
        metrics["update/grad_norm"] = float(result["grad_norm"])
        self._timings["time/update"] = self._timings.get("time/update", 0.0) + time.perf_counter() - started
        self.log_values({**metrics, **self.learning_rates(), "time/update": self._timings["time/update"]})

    def minibatch_losses(self, minibatch: Minibatch, rows: Tensor, sums: UpdateSums, part: int) -> Iterator[Tensor]:
        """The share of micro-batch ``rows`` in the loss of the global minibatch: the policy's, then the critic's.

        Lazily, so that on one device the policy's activations are gone before the critic's are made.
        """
        experience = minibatch.experience
        compact = compact_rows(experience, rows, self.tokenizer.pad_token_id)
        width = compact.response_mask.size(1)
        taken = experience.rows(rows)
        config = self.loss_config
        logprobs, entropy = response_logprobs(self.policy, compact, with_entropy=config.entropy_coef > 0)
        old = taken.ref_logprobs if config.old_logprobs == "reference" else taken.old_logprobs
        advantages = self.update_advantages(minibatch, taken.advantages[:, :width], compact.response_mask)
        sums.add_advantages(advantages, compact.response_mask)
        loss = self.policy_loss(logprobs, old[:, :width], advantages, compact.response_mask, minibatch, sums)
        if entropy is not None:
            loss = loss + self.entropy_loss(entropy, compact.response_mask, minibatch, sums)
        if minibatch.ptx is not None and self.ptx is not None:
            text = minibatch.ptx.rows(ptx_share(len(minibatch.ptx), part, len(minibatch.micro_batches)))
            loss = loss + self.ptx.coef * self.ptx_loss(text, minibatch.ptx_tokens, sums)
        yield loss
        if self.critic is not None:
            yield config.vf_coef * self.critic_loss(compact, taken, minibatch, sums)

    def update_advantages(self, minibatch: Minibatch, advantages: Tensor, mask: Tensor) -> Tensor:
        """Whitening with the global minibatch's moments, then clipping (detail 6); both are off by default."""
        config = self.loss_config
        if config.whiten_advantages:
            moments = (minibatch.advantage_mean, minibatch.advantage_std**2)
            advantages = masked_whiten(advantages, mask, moments=moments)
        if config.advantage_clip is not None:
            advantages = advantages.clamp(-config.advantage_clip, config.advantage_clip)
        return advantages

    def policy_loss(
        self,
        logprobs: Tensor,
        old_logprobs: Tensor,
        advantages: Tensor,
        mask: Tensor,
        minibatch: Minibatch,
        sums: UpdateSums,
    ) -> Tensor:
        """Eq. 15, or eq. 14; normalized by the global minibatch's tokens."""
        config = self.loss_config
        if config.objective == "kl_penalty":
            result = kl_penalty_policy_loss(
                logprobs, old_logprobs, advantages, mask, beta=config.kl_penalty_coef, normalizer=minibatch.num_tokens
            )
        else:
            clip = config.clip_range if config.objective == "clip" else None
            result = clipped_policy_loss(
                logprobs, old_logprobs, advantages, mask, clip_range=clip, normalizer=minibatch.num_tokens
            )
        sums.add_policy(result)
        return result.loss

    def entropy_loss(self, entropy: Tensor, mask: Tensor, minibatch: Minibatch, sums: UpdateSums) -> Tensor:
        """The entropy bonus, or the release's clipped form (detail 3).

        The clipped form's sign is decided by the mean entropy of the whole iteration at rollout time, the same number
        for every micro-batch and rank.
        """
        config = self.loss_config
        term = entropy_term(
            entropy,
            mask,
            coef=config.entropy_coef,
            clip=config.entropy_clip,
            normalizer=minibatch.num_tokens,
            mean_entropy=self._rollout_metrics.get("rollout/entropy"),
        )
        sums.add("loss/entropy", term.loss)
        sums.add("update/entropy", term.entropy)
        return term.loss

    def critic_loss(self, compact: CompactRows, taken: Experience, minibatch: Minibatch, sums: UpdateSums) -> Tensor:
        """Half the squared error to the returns, clipped around the old values (detail 7)."""
        values = response_values(self.critic, compact)
        width = values.size(1)
        result = value_loss(
            values,
            taken.old_values[:, :width],
            taken.returns[:, :width],
            compact.response_mask,
            clip_range=self.loss_config.value_clip_range,
            normalizer=minibatch.num_tokens,
        )
        sums.add_value(result, values, taken.returns[:, :width], compact.response_mask)
        return result.loss

    def ptx_loss(self, text: TextBatch, num_tokens: float, sums: UpdateSums) -> Tensor:
        """Language-model loss on text (eq. 17); zero for an empty share."""
        if not len(text):
            return torch.zeros((), device=self.device)
        logprobs, mask = text_logprobs(self.policy, text)
        loss = lm_loss(logprobs, mask, normalizer=num_tokens).loss
        sums.add("loss/ptx", loss)
        return loss

    # ---------------------------------------------------------------- state, phases

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See ``BaseModule``; evaluation has no critic and leaves the checkpoint's out."""
        super().on_load_checkpoint(checkpoint)
        if self.critic is None and self.estimator.needs_critic:
            state = checkpoint.get("state_dict", {})  # a ZeRO folder keeps the weights elsewhere
            checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("critic.")}

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

    def extra_state(self) -> dict[str, Any]:
        """Running moments, KL controller, iteration, and whether a half-used iteration is left out."""
        return {
            "moments": self.moments.state_dict(),
            "kl_controller": self.kl_controller.state_dict(),
            "iteration": self.iteration,
            "left_out": self._left_out,
            "rollout_metrics": dict(self._rollout_metrics),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """See :meth:`extra_state`."""
        self.moments = RunningMoments.from_state(state["moments"])
        self.kl_controller.load_state_dict(dict(state["kl_controller"]))
        self.iteration = state["iteration"]
        self._left_out = state["left_out"]
        self._rollout_metrics = dict(state["rollout_metrics"])


def ptx_share(total: int, part: int, parts: int) -> Tensor:
    """Rows of the text batch that go with micro-batch ``part`` of ``parts``."""
    return torch.arange(total)[part::parts]
