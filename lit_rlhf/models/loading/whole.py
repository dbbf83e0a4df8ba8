"""Models of their own: from a whole model's folder, or from an adapter's by adding it to its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lit_rlhf.models.adapters import layers_of, stored_adapter
from lit_rlhf.models.frozen import cast_parameters
from lit_rlhf.models.loading.origin import Origin, origin
from lit_rlhf.models.loading.pretrained import as_dtype, enable_checkpointing, load_pretrained, without_layers


def load_whole(
    auto_class: Any,
    path: str | Path,
    *,
    dtype: str | torch.dtype | None,
    attn_implementation: str | None,
    gradient_checkpointing: bool,
    trust_remote_code: bool,
    num_layers: int | None = None,
) -> Any:
    """A model with weights of its own, all trainable, on the CPU; an adapter is merged into its base in fp32.

    Args:
        auto_class: What reads the folder.
        path: A whole model, or an adapter.
        dtype: Of the weights; None: the run's (``loading_in``), fp32 outside of one.
        attn_implementation: As in transformers; None takes its default for the architecture.
        gradient_checkpointing: Recompute each layer's activations in backward (active in train mode only).
        trust_remote_code: Run Python files that come with the model.
        num_layers: Keep the first layers alone; None for all, or as many as the adapter was trained on.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: Weights are missing, damaged, or a pickle with code.
    """
    found = origin(path, trust_remote_code=trust_remote_code)
    loading: dict[str, Any] = {"attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
    model = load_pretrained(auto_class, found.base, dtype=dtype if found.adapter is None else "float32", **loading)
    layers = cut_to(model, found, num_layers)
    if found.adapter is not None:
        merged = (
            stored_adapter(model, found.adapter, num_layers=layers)
            .merge_and_unload()
            .requires_grad_(requires_grad=True)
        )
        model = cast_parameters(merged, as_dtype(dtype))
    if gradient_checkpointing:
        enable_checkpointing(model)
    return model


def cut_to(model: Any, found: Origin, num_layers: int | None) -> int | None:
    """Cut ``model`` to its first ``num_layers``; None: to as many as the adapter of ``found`` is on, or not at all.

    Returns:
        How many are left, or None where nothing was cut.

    Raises:
        ValueError: It has fewer layers.
    """
    if num_layers is None and found.adapter is not None:
        num_layers = layers_of(found.adapter)
    if num_layers is not None:
        without_layers(model, num_layers)
    return num_layers
