"""Loading a module's models as its ``ModelConfig`` says."""

from __future__ import annotations

from typing import Any

from lit_rlhf.config import ModelConfig
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.tokenizer import load_tokenizer


def load_options(config: ModelConfig) -> dict[str, Any]:
    """Keyword arguments that every model is loaded with."""
    return {"attn_implementation": config.attn_implementation, "trust_remote_code": config.trust_remote_code}


def load_tokenizer_for(path: str, config: ModelConfig) -> Any:
    """The tokenizer of ``path`` with the checks of ``load_tokenizer``."""
    return load_tokenizer(path, pad_token=config.pad_token, trust_remote_code=config.trust_remote_code)


def load_policy(path: str, config: ModelConfig) -> Any:
    """The trainable policy."""
    return load_causal_lm(path, gradient_checkpointing=config.gradient_checkpointing, **load_options(config))
