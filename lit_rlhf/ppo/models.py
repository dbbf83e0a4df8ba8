"""Where PPO's policy, reference and critic come from, and whether they fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lit_rlhf.config import ModelConfig, group
from lit_rlhf.models.frozen import FrozenModel
from lit_rlhf.models.loading.adapted import load_frozen_lm, shared_origin
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.configured import load_options, load_policy, load_scalar, load_tokenizer_for
from lit_rlhf.models.loading.objects import ModelLike, model_source
from lit_rlhf.models.loading.tokenizer import check_tokenizers
from lit_rlhf.models.uses import ModelUse
from lit_rlhf.ppo.config import CriticConfig, ReferenceConfig

if TYPE_CHECKING:
    ReferenceConfigLike = ReferenceConfig | ModelLike | Mapping[str, Any] | None
else:
    ReferenceConfigLike = ReferenceConfig | str | None
"""What names a reference: its options, its path alone, or None for no reference."""


def reference_config(value: Any) -> ReferenceConfig | None:
    """The reference's options.

    Raises:
        ValueError: It is neither options, a path, a pair (model, tokenizer) nor None.
    """
    if value is None or isinstance(value, ReferenceConfig):
        return value
    if not isinstance(value, Mapping):
        return ReferenceConfig(path=model_source(value, "reference"))
    config = group(ReferenceConfig, value, "reference")
    return replace(config, path=None if config.path is None else model_source(config.path, "reference.path"))


class PPOModels:
    """Builds the models of PPO from folders or hub names; nothing is loaded before a method is called.

    Args:
        policy: Folder or hub name of the SFT model.
        reference: The frozen reference; None for none.
        critic: Where the critic comes from; None for none.
        reward: Source of scores, for `critic.init: reward`; a reward that is a model has a ``path``.
        model: How models are loaded.
    """

    def __init__(
        self,
        policy: str,
        *,
        reference: ReferenceConfig | None,
        critic: CriticConfig | None,
        reward: object,
        model: ModelConfig,
    ) -> None:
        self.policy_path = policy
        self.reference = reference
        self.critic = critic
        self.reward = reward
        self.model = model

    @property
    def reference_path(self) -> str | None:
        """Folder or hub name of the reference; the policy's own where nothing else is said."""
        return None if self.reference is None else self.reference.path or self.policy_path

    @property
    def critic_init(self) -> str:
        """``critic.init``, with what it is where nothing is said: `reward` if that is a model, else `policy`."""
        assert self.critic is not None
        return self.critic.init or ("policy" if getattr(self.reward, "path", None) is None else "reward")

    @property
    def critic_path(self) -> str | None:
        """Folder or hub name that the critic's trunk comes from.

        Raises:
            ValueError: If the critic is to come from a reward that is not a model.
        """
        if self.critic is None:
            return None
        path = getattr(self.reward, "path", None)
        init = self.critic_init
        if init != "reward":
            return self.policy_path if init == "policy" else init
        if path is None:
            raise ValueError(
                f"`critic.init: reward` needs a reward that is a model; {type(self.reward).__name__} is not. "
                "Use `policy`, or name a folder."
            )
        return str(path)

    @property
    def critic_loading(self) -> ModelConfig:
        """How the critic is loaded: as the policy is, but for what `critic.adapter` says."""
        whole = self.critic is not None and not self.critic.adapter
        return replace(self.model, adapter=None) if whole else self.model

    def sources(self, *, with_critic: bool) -> dict[str, str]:
        """Folder or hub name of each part that a checkpoint can be exported to."""
        critic = {"critic": self.critic_path} if with_critic and self.critic_path is not None else {}
        return {"policy": self.policy_path, "tokenizer": self.policy_path, **critic}

    def memory_models(self) -> list[ModelUse]:
        """What a fit holds of them, for `lit-rlhf plan`."""
        loading, frozen = self.model, self.reference
        uses = [ModelUse(role="policy", path=self.policy_path, causal=True, trained=True, loading=loading)]
        if frozen is not None and self.reference_path is not None:
            reference = ModelUse(
                role="reference",
                path=self.reference_path,
                causal=True,
                dtype=frozen.dtype,
                placement=frozen.placement,
                loading=loading,
            )
            uses.append(reference)
        if self.critic_path is not None:
            assert self.critic is not None
            critic = ModelUse(
                role="critic",
                path=self.critic_path,
                causal=False,
                trained=True,
                num_layers=self.critic.num_layers,
                loading=self.critic_loading,
            )
            uses.append(critic)
        return uses

    def load_tokenizer(self) -> Any:
        """The policy's tokenizer.

        Raises:
            FileNotFoundError: No such folder or hub name.
            ValueError: It cannot pad or end a response.
        """
        return load_tokenizer_for(self.policy_path, self.model)

    def check_vocabularies(self, tokenizer: Any, *, with_critic: bool, with_reference: bool) -> None:
        """Refuse, before any weights are read, a critic or reference that reads token ids differently.

        Raises:
            FileNotFoundError: A model's folder does not exist.
            ValueError: The vocabularies differ, or a critic is to come from a reward that is no model.
        """
        paths = {self.critic_path} if with_critic else set()
        paths |= {self.reference_path} if with_reference else set()
        for path in sorted(path for path in paths if path not in (None, self.policy_path)):
            check_tokenizers(tokenizer, path, trust_remote_code=self.model.trust_remote_code)

    def build_policy(self) -> Any:
        """The trainable policy, a causal language model on the CPU."""
        return load_policy(self.policy_path, self.model)

    def build_reference(self, policy: Any) -> FrozenModel[nn.Module] | None:
        """The frozen reference, or None: on the policy's base where it can be, else a model of its own.

        Raises:
            ValueError: If its vocabulary is not the policy's.
        """
        if self.reference is None:
            return None
        assert self.reference_path is not None
        placement, dtype, trust = self.reference.placement, self.reference.dtype, self.model.trust_remote_code
        shared = shared_origin(self.reference_path, dtype=dtype, placement=placement, trust_remote_code=trust)
        if shared is not None:
            model = load_frozen_lm(*shared, self.model)
        else:
            model = load_causal_lm(self.reference_path, dtype=dtype, **load_options(self.model))
        check_same_vocabulary(policy, model, "reference")
        return FrozenModel(model, placement=placement)

    def build_critic(self, policy: Any, *, device: torch.device | str = "cpu") -> nn.Module | None:
        """The trainable critic (detail 8) from the reward model, the policy, or a folder of its own; or None.

        Args:
            policy: For its vocabulary.
            device: Where a folder's fingerprint is checked. The reward checks its own when it is set up.

        Raises:
            ValueError: If it is to come from a reward that is not a model, or its vocabulary is not the policy's.
        """
        if self.critic is None:
            return None
        assert self.critic_path is not None
        critic = load_scalar(
            self.critic_path,
            self.critic_loading,
            head="fresh" if self.critic_init == "policy" else "load",
            num_layers=self.critic.num_layers,
            check_on=None if self.critic_init == "reward" else device,
        )
        check_same_vocabulary(policy, critic.trunk, "critic")
        return critic


def check_same_vocabulary(policy: Any, other: Any, name: str) -> None:
    """Refuse models that do not read the policy's token ids.

    Raises:
        ValueError: If the vocabularies have different sizes.
    """
    sizes = [model.config.get_text_config().vocab_size for model in (policy, other)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"The {name}'s vocabulary ({sizes[1]} tokens) must be the policy's ({sizes[0]} tokens).")
