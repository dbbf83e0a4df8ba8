"""PPO's four models: loading them, with the checks that belong between them, and answering prompts with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_rlhf.distributed import rank
from lit_rlhf.models.export import export_policy
from lit_rlhf.models.frozen import FrozenModel
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.configured import load_options, load_policy, load_tokenizer_for
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.models.loading.tokenizer import check_tokenizers
from lit_rlhf.modules.answers import eos_token_ids, reward_request
from lit_rlhf.modules.base import BaseModule
from lit_rlhf.modules.ptx import PTXText
from lit_rlhf.ppo.config import CriticConfig, FrozenConfig, PTXConfig
from lit_rlhf.ppo.estimators import AdvantageEstimator
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rollout.engine import RolloutEngine
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.types import PromptBatch, RewardRequest, Rollout


class FourModels(BaseModule):
    """The four models of PPO and what both training and evaluation do with them. ``PPOModule`` sets the attributes.

    Attributes:
        policy: The trained language model; None before ``configure_model``.
        critic: The trained value model; None where there is none.
        reward: Source of scores.
        eval_rewards: Further scores, never trained on.
        estimator: Advantage estimator; says whether a critic is needed.
        engine: What generates.
    """

    policy_path: str
    reference_path: str
    policy: Any
    critic: Any
    reward: Reward
    eval_rewards: dict[str, Reward]
    estimator: AdvantageEstimator
    engine: RolloutEngine
    critic_config: CriticConfig
    frozen_config: FrozenConfig
    critic_lr: float
    ptx: PTXConfig | None
    _ptx_text: PTXText | None
    _reference: FrozenModel[nn.Module] | None

    def configure_model(self) -> None:
        """Load what the stage needs: prediction only generates."""
        if self.policy is not None:
            return
        predicting = self._trainer is not None and self.trainer.predicting
        training = self._trainer is None or self.trainer.training or self.trainer.sanity_checking
        self.tokenizer = load_tokenizer_for(self.policy_path, self.model_config)
        with_critic = training and self.estimator.needs_critic
        check_sources(self, with_critic=with_critic, with_reference=not predicting)
        self.policy = load_policy(self.policy_path, self.model_config)
        if with_critic:
            self.critic = load_critic(self)
        if not predicting:
            self._reference = self.build_reference()
            self.reward.setup(device=self.device, tokenizer=self.tokenizer)
            for extra in self.eval_rewards.values():
                extra.setup(device=self.device, tokenizer=self.tokenizer)
        if training and self.ptx is not None:
            self._ptx_text = PTXText(self.ptx, self.tokenizer)

    def build_reference(self) -> FrozenModel[nn.Module]:
        """The frozen reference; override to bring your own."""
        return load_frozen_reference(self)

    @property
    def reference(self) -> FrozenModel[nn.Module]:
        """The frozen reference policy."""
        assert self._reference is not None
        return self._reference

    def parameter_groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """`policy` and, with a critic, `critic`."""
        groups = {"policy": (list(self.policy.parameters()), self.optimizer_config.lr)}
        if self.critic is not None:
            groups["critic"] = (list(self.critic.parameters()), self.critic_lr)
        return groups

    def sources(self) -> dict[str, str]:
        """What checkpoints say of where the parts came from."""
        critic = {} if self.critic is None else {"critic": critic_path(self)}
        return {"policy": self.policy_path, "tokenizer": self.policy_path, **critic}

    def export(self, path: str | Path) -> None:
        """Write the policy and its tokenizer as a Hugging Face folder; rank 0 writes."""
        if rank() == 0:
            export_policy(self.policy, self.tokenizer, path)

    def generate(self, prompts: PromptBatch, uniforms: Tensor, sampling: SamplingConfig) -> Rollout:
        """Responses to ``prompts`` by the current policy."""
        return self.engine.generate(
            self.policy,
            prompts,
            sampling=sampling,
            eos_token_ids=eos_token_ids(self.tokenizer, self.policy),
            pad_token_id=self.tokenizer.pad_token_id,
            uniforms=uniforms,
        )

    def reward_request(self, rollout: Rollout) -> RewardRequest:
        """The responses as rewards see them."""
        return reward_request(self.tokenizer, rollout)


def load_critic(module: FourModels) -> nn.Module:
    """The trainable critic (detail 8), from the reward model, the policy, or a folder of its own.

    Raises:
        ValueError: If the critic is to come from a reward that is not a model, or its vocabulary is not the policy's.
    """
    config = module.model_config
    head: Literal["load", "fresh"] = "fresh" if module.critic_config.init == "policy" else "load"
    critic = load_scalar_model(
        critic_path(module),
        head=head,
        gradient_checkpointing=config.gradient_checkpointing,
        **load_options(config),
    )
    check_same_vocabulary(module.policy, critic.trunk, "critic")
    return critic


def critic_path(module: FourModels) -> str:
    """Folder or hub name that the critic's trunk comes from.

    Raises:
        ValueError: If the critic is to come from a reward that is not a model.
    """
    init = module.critic_config.init
    if init == "policy":
        return module.policy_path
    if init != "reward":
        return init
    path = getattr(module.reward, "path", None)
    if path is None:
        raise ValueError(
            f"`critic.init: reward` needs a reward that is a model; {type(module.reward).__name__} is not. "
            "Use `policy`, or name a folder."
        )
    return str(path)


def check_sources(module: FourModels, *, with_critic: bool, with_reference: bool) -> None:
    """Refuse, before any weights are read, a critic or reference that reads token ids differently.

    Raises:
        FileNotFoundError: A model's folder does not exist.
        ValueError: The vocabularies differ.
    """
    paths = {module.reference_path} if with_reference else set()
    paths |= {critic_path(module)} if with_critic else set()
    for path in sorted(paths - {module.policy_path}):
        check_tokenizers(module.tokenizer, path, trust_remote_code=module.model_config.trust_remote_code)


def load_frozen_reference(module: FourModels) -> FrozenModel[nn.Module]:
    """The frozen reference policy in its configured dtype and placement."""
    frozen = module.frozen_config
    model = load_causal_lm(module.reference_path, dtype=frozen.dtype, **load_options(module.model_config))
    check_same_vocabulary(module.policy, model, "reference")
    return FrozenModel(model, placement=frozen.placement, dtype=getattr(torch, frozen.dtype))


def check_same_vocabulary(policy: Any, other: Any, name: str) -> None:
    """Refuse models that do not read the policy's token ids.

    Raises:
        ValueError: If the vocabularies have different sizes.
    """
    sizes = [model.config.get_text_config().vocab_size for model in (policy, other)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"The {name}'s vocabulary ({sizes[1]} tokens) must be the policy's ({sizes[0]} tokens).")
