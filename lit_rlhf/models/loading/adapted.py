"""Models that are an adapter on a shared base: trained ones, and frozen ones beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from lit_rlhf.config import AdapterConfig, ModelConfig
from lit_rlhf.models.adapters import new_adapter, stored_adapter
from lit_rlhf.models.causal import unwrap
from lit_rlhf.models.loading.base import kind_name, live_kind, load_base
from lit_rlhf.models.loading.origin import Origin, origin
from lit_rlhf.models.loading.pretrained import enable_checkpointing
from lit_rlhf.models.loading.run_dtype import run_dtype
from lit_rlhf.models.loading.scalar import head_weight, scalar_model, verify
from lit_rlhf.models.loading.whole import cut_to
from lit_rlhf.models.scalar import ScalarModel


def shared_origin(
    path: str | Path, *, dtype: str | None, placement: str, trust_remote_code: bool = False
) -> tuple[Origin, str] | None:
    """Where a frozen model comes from and how its base is kept, if it can run on a base that is loaded already.

    It can where it is to be on the device, as that base is, in the base's dtype or none in particular.

    Raises:
        FileNotFoundError: There is no such model.
    """
    if placement != "device":
        return None
    found = origin(path, trust_remote_code=trust_remote_code)
    kind = live_kind(found, trust_remote_code=trust_remote_code)
    return (found, kind) if kind is not None and dtype in (None, kind) else None


def load_adapted_policy(path: str | Path, config: ModelConfig) -> Any:
    """A trainable policy: an adapter on a frozen base.

    Args:
        path: A whole causal LM, which gets a fresh adapter, or an adapter, which goes on being trained.
        config: With its ``adapter``.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: The adapter does not fit the model, or is another one than ``config.adapter`` says.
    """
    assert config.adapter is not None
    found = origin(path, trust_remote_code=config.trust_remote_code)
    model = load_base(found, kind=config.adapter.base, trunk=False, **_options(config))
    policy = _with_adapter(model, found, config.adapter)
    if config.gradient_checkpointing:
        enable_checkpointing(unwrap(policy))
    return policy


def load_adapted_scalar(
    path: str | Path,
    config: ModelConfig,
    *,
    head: Literal["load", "fresh"],
    lm_head: bool = False,
    num_layers: int | None = None,
    check_on: torch.device | str | None = None,
) -> ScalarModel:
    """A trainable reward model or critic: an adapter and a head on a frozen base.

    Args:
        path: A whole causal LM or reward model, which gets a fresh adapter, or an adapter, which goes on being trained.
        config: With its ``adapter``.
        head: Take the head from the checkpoint, or draw a new one (from torch's global generator).
        lm_head: Keep the base's output embedding as well, frozen, for the reward model's auxiliary LM loss.
        num_layers: Keep the first layers of the trunk alone; for a fresh head.
        check_on: See ``load_scalar_model``.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: As ``load_scalar_model`` and ``load_adapted_policy``.
    """
    assert config.adapter is not None
    found = origin(path, trust_remote_code=config.trust_remote_code)
    weight = head_weight(found, head, num_layers)
    model = load_base(found, kind=config.adapter.base, trunk=not lm_head, **_options(config))
    layers = cut_to(model, found, num_layers)
    trunk = _with_adapter(model.base_model if lm_head else model, found, config.adapter, num_layers=layers)
    scalar = scalar_model(model, trunk, weight, lm_head=lm_head)
    if weight is not None:
        dtype = _dtype(kind_name(config.adapter.base))
        verify(path, scalar, dtype, check_on, trust_remote_code=config.trust_remote_code)
    if config.gradient_checkpointing:
        enable_checkpointing(unwrap(trunk))
    return scalar


def load_frozen_lm(found: Origin, kind: str, config: ModelConfig) -> Any:
    """A causal LM that is never trained, on a base that is loaded already: ``found``, its adapter included."""
    model = load_base(found, kind=kind, trunk=False, **_options(config))
    return model if found.adapter is None else _in_run_dtype(stored_adapter(model, found.adapter))


def load_frozen_scalar(
    path: str | Path,
    found: Origin,
    kind: str,
    *,
    check_on: torch.device | str | None,
    trust_remote_code: bool = False,
) -> ScalarModel:
    """A reward model that is never trained, on a base that is loaded already: ``found``, its adapter included.

    Raises:
        ValueError: No head, or scores that differ from the folder's fingerprint.
    """
    weight = head_weight(found, "load")
    model = load_base(found, kind=kind, trunk=True, trust_remote_code=trust_remote_code)
    layers = cut_to(model, found, None)
    trunk = model if found.adapter is None else stored_adapter(model, found.adapter, num_layers=layers)
    scalar = scalar_model(model, trunk, weight, lm_head=False)
    verify(path, scalar, _dtype(kind), check_on, trust_remote_code=trust_remote_code)
    return scalar


def _in_run_dtype(model: Any) -> Any:
    """The adapter as the strategy keeps the policy's, so that both compute the same numbers; the base has its own."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(run_dtype())
    return model


def _with_adapter(model: Any, found: Origin, config: AdapterConfig, *, num_layers: int | None = None) -> Any:
    if found.adapter is None:
        return new_adapter(model, config, base=found.name)
    return stored_adapter(model, found.adapter, config, num_layers=num_layers)


def _dtype(kind: str) -> torch.dtype | None:
    return None if kind == "nf4" else getattr(torch, kind)


def _options(config: ModelConfig) -> dict[str, Any]:
    return {"attn_implementation": config.attn_implementation, "trust_remote_code": config.trust_remote_code}
