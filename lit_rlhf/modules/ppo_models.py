"""Loading PPO's four models, with the checks that belong between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lit_rlhf.models.frozen import FrozenModel
from lit_rlhf.models.loading import check_tokenizers, load_causal_lm, load_scalar_model, load_tokenizer
from lit_rlhf.modules.config import ModelConfig

if TYPE_CHECKING:
    from lit_rlhf.modules.ppo import PPOModule


def load_options(config: ModelConfig) -> dict[str, Any]:
    """Keyword arguments that every model is loaded with."""
    return {"attn_implementation": config.attn_implementation, "trust_remote_code": config.trust_remote_code}


def load_tokenizer_for(path: str, config: ModelConfig) -> Any:
    """The tokenizer of ``path`` with the checks of ``load_tokenizer``."""
    return load_tokenizer(path, pad_token=config.pad_token, trust_remote_code=config.trust_remote_code)


def load_policy(path: str, config: ModelConfig) -> Any:
    """The trainable policy."""
    return load_causal_lm(path, gradient_checkpointing=config.gradient_checkpointing, **load_options(config))


def load_critic(module: PPOModule) -> nn.Module:
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


def critic_path(module: PPOModule) -> str:
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


def check_sources(module: PPOModule, *, with_critic: bool, with_reference: bool) -> None:
    """Refuse, before any weights are read, a critic or reference that reads token ids differently.

    Raises:
        FileNotFoundError: A model's folder does not exist.
        ValueError: The vocabularies differ.
    """
    paths = {module.reference_path} if with_reference else set()
    paths |= {critic_path(module)} if with_critic else set()
    for path in sorted(paths - {module.policy_path}):
        check_tokenizers(module.tokenizer, path, trust_remote_code=module.model_config.trust_remote_code)


def load_frozen_reference(module: PPOModule) -> FrozenModel[nn.Module]:
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
