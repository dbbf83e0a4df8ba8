"""Loading a module's models as its ``ModelConfig`` says."""

from __future__ import annotations

from typing import Any, Literal

import torch

from lit_rlhf.config import ModelConfig
from lit_rlhf.models.loading.adapted import load_adapted_policy, load_adapted_scalar
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.pretrained import freeze_first_layers
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.models.loading.tokenizer import load_tokenizer
from lit_rlhf.models.scalar import ScalarModel


def load_options(config: ModelConfig) -> dict[str, Any]:
    """Keyword arguments that every model is loaded with."""
    return {"attn_implementation": config.attn_implementation, "trust_remote_code": config.trust_remote_code}


def load_tokenizer_for(path: str, config: ModelConfig) -> Any:
    """The tokenizer of ``path`` with the checks of ``load_tokenizer``."""
    return load_tokenizer(path, pad_token=config.pad_token, trust_remote_code=config.trust_remote_code)


def load_policy(path: str, config: ModelConfig) -> Any:
    """The trainable policy: an adapter on a frozen base, or a model of which all weights or the upper layers train."""
    if config.adapter is not None:
        return load_adapted_policy(path, config)
    model = load_causal_lm(path, gradient_checkpointing=config.gradient_checkpointing, **load_options(config))
    freeze_first_layers(model, config.freeze_layers)
    return model


def load_scalar(
    path: str,
    config: ModelConfig,
    *,
    head: Literal["load", "fresh"],
    lm_head: bool = False,
    num_layers: int | None = None,
    check_on: torch.device | str | None = None,
) -> ScalarModel:
    """A trainable reward model or critic, as :func:`load_policy`; see ``load_scalar_model`` for the arguments."""
    options: dict[str, Any] = {"head": head, "lm_head": lm_head, "num_layers": num_layers, "check_on": check_on}
    if config.adapter is not None:
        return load_adapted_scalar(path, config, **options)
    checkpointing = config.gradient_checkpointing
    model = load_scalar_model(path, gradient_checkpointing=checkpointing, **options, **load_options(config))
    freeze_first_layers(model.trunk, config.freeze_layers)
    return model
