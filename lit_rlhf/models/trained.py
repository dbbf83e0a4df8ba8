"""Trained models put together again out of a checkpoint's weights, and for what was frozen out of their source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlhf.config import AdapterConfig, ModelConfig
from lit_rlhf.models.export import causal_lm_from_state, scalar_model_from_state
from lit_rlhf.models.loading.configured import load_policy, load_scalar
from lit_rlhf.models.scalar import ScalarModel


def policy_from_checkpoint(path: str, state: dict[str, Tensor], loading: Mapping[str, Any]) -> Any:
    """The policy that a checkpoint holds.

    Args:
        path: What it was loaded from.
        state: Its weights in the checkpoint.
        loading: ``BaseModule.part_loading`` of it; empty for a whole model.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: A weight is missing, left over, or has another shape.
    """
    if not any(loading.values()):
        return causal_lm_from_state(path, state)
    return _with_weights(load_policy(path, _config(loading)), state)


def scalar_from_checkpoint(path: str, state: dict[str, Tensor], loading: Mapping[str, Any]) -> ScalarModel:
    """The critic or reward model that a checkpoint holds; see :func:`policy_from_checkpoint`."""
    if not any(loading.values()):
        return scalar_model_from_state(path, state)
    config, layers = _config(loading), loading.get("num_layers")
    state = {key: value for key, value in state.items() if not key.startswith("lm_head.")}  # it is never exported
    scalar: ScalarModel = _with_weights(load_scalar(path, config, head="fresh", num_layers=layers), state)
    return scalar


def _config(loading: Mapping[str, Any]) -> ModelConfig:
    adapter = loading.get("adapter")
    return ModelConfig(
        adapter=None if adapter is None else AdapterConfig(**adapter), freeze_layers=loading.get("freeze_layers") or 0
    )


@torch.no_grad()
def _with_weights(model: nn.Module, state: Mapping[str, Tensor]) -> Any:
    own = dict(model.named_parameters(remove_duplicate=False))
    missing = sorted(name for name, p in own.items() if p.requires_grad and name not in state)
    known = own.keys() | {name for name, _ in model.named_buffers()}
    odd = missing + sorted(state.keys() - known)
    odd += sorted(name for name in state.keys() & own.keys() if state[name].shape != own[name].shape)
    if odd:
        raise ValueError(f"The checkpoint does not fit {type(model).__name__}: {len(odd)} weights, such as {odd[0]}.")
    for name in state.keys() & own.keys():
        own[name].copy_(state[name])
    return model
