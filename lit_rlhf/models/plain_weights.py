"""A model's weights under the names of a checkpoint, for whoever keeps a copy of them: an inference engine.

Adapters are merged on the way and nothing is written: the base may be shared by policy, reference and critic
(``shared_base.py``), and merging in place and back again would move it by rounding at every turn.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.models.adapters import is_adapted
from lit_rlhf.models.causal import unwrap


@torch.no_grad()
def plain_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name in a checkpoint of the plain model, tied ones under each of their names.

    The tensors are the model's own, to be read at once, except merged ones, which are made one at a time.

    Args:
        model: A causal LM of transformers, PEFT-wrapped or not, all of its weights on this rank.

    Raises:
        ValueError: The base of an adapter is in four or eight bits.
    """
    if is_adapted(model):
        yield from _merged(unwrap(model))
        return
    state = model.state_dict()
    # transformers 5 fuses experts in memory; a checkpoint has them one by one.
    revert = getattr(importlib.import_module("transformers.core_model_loading"), "revert_weight_conversion", None)
    yield from (state if revert is None else revert(model, state)).items()


def save_plain_config(model: Any, folder: str) -> None:
    """Write the ``config.json`` of a plain causal LM, from which an engine builds the architecture.

    Args:
        model: Of transformers, not PEFT-wrapped.
        folder: Exists already.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]  # a fresh config has none, and engines guess
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)


def _merged(model: Any) -> Iterator[tuple[str, Tensor]]:
    layers = {f"{name}.": m for name, m in model.named_modules() if hasattr(m, "lora_A")}
    for name, value in model.state_dict().items():
        inside = next((prefix for prefix in layers if name.startswith(prefix)), None)
        if inside is None:
            yield name, value
        elif name == f"{inside}base_layer.weight":
            yield f"{inside}weight", _merged_weight(layers[inside], inside)
        elif name.startswith(f"{inside}base_layer."):
            yield name.replace(".base_layer.", "."), value


def _merged_weight(layer: Any, name: str) -> Tensor:
    base = layer.get_base_layer().weight
    if not base.is_floating_point():
        raise ValueError(f"`adapter.base` of {name.rstrip('.')} ({base.dtype}) must be in 16 or 32 bits to be merged.")
    weight: Tensor = base.float()
    for adapter in layer.active_adapters:
        variant = getattr(layer, "lora_variant", {}).get(adapter)  # DoRA
        if variant is None:
            weight = weight + layer.get_delta_weight(adapter).float()
        else:
            weight = variant.merge_safe(layer, adapter, weight)
    merged: Tensor = weight.to(base.dtype)
    return merged
