"""Causal language models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lit_rlhf.models.loading.pretrained import load_config
from lit_rlhf.models.loading.whole import load_whole


def load_causal_lm(
    path: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """A causal language model with every weight from the checkpoint and every dropout off.

    Dropout is off because the update must see the very distribution that sampled: with it the first importance ratios
    of an iteration would not be 1.

    Args:
        path: Local folder or hub name; an adapter is merged into a copy of its base.
        dtype: Of the weights; None: the run's (``loading_in``), fp32 outside of one.
        attn_implementation: As in transformers; None takes its default for the architecture.
        gradient_checkpointing: Recompute each layer's activations in backward (active in train mode only).
        trust_remote_code: Run Python files that come with the model.

    Returns:
        ``PreTrainedModel`` on the CPU, in eval mode as transformers leaves it.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: Weights are missing, damaged, or a pickle with code, or the folder is a reward model's.
    """
    from transformers import AutoModelForCausalLM

    # With tied embeddings a reward model's folder lacks nothing that a language model needs.
    kinds = load_config(path, trust_remote_code=trust_remote_code).architectures or []
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ValueError(f"{path} is a model that scores ({kinds[0]}), not a language model that writes.")

    return load_whole(
        AutoModelForCausalLM, path, dtype=dtype, attn_implementation=attn_implementation,
        gradient_checkpointing=gradient_checkpointing, trust_remote_code=trust_remote_code,
    )  # fmt: skip
