"""LoRA adapters by peft, and several models on one set of base weights.

Models that differ in their adapters alone share their base: each is a skeleton of its own (modules, buffers, hooks) whose
base parameters are the same tensors. So policy, reference, critic and reward of a PPO run cost one base in memory, none
has to be switched on before it is used, and a backward pass that recomputes activations meets the adapter it ran with.
"""

from __future__ import annotations

import copy
import json
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_rlhf.config import AdapterConfig

ADAPTER_FILE = "adapter_config.json"
_NEEDED = "Adapters need peft: pip install 'lit-rlhf[peft]'."


class _Base:
    """Keeps a base model alive while one of its skeletons is; a copy of a skeleton holds the same one."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> _Base:
        return self


_bases: weakref.WeakValueDictionary[tuple[Any, ...], _Base] = weakref.WeakValueDictionary()


def skeleton(model: nn.Module) -> Any:
    """A copy of the modules and buffers of ``model`` around the very same parameters."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def shared_base(key: tuple[Any, ...], load: Callable[[], nn.Module]) -> Any:
    """A skeleton of the frozen base model that ``key`` names; loaded where none is alive.

    Args:
        key: Everything that the weights and their computation depend on: folder, dtype, attention, ...
        load: Loads the base model.
    """
    base = _bases.get(key)
    if base is None:
        base = _Base(load().requires_grad_(requires_grad=False))
        _bases[key] = base
    own = skeleton(base.model)
    object.__setattr__(own, "_lit_rlhf_base", base)  # not registered as a sub-module
    return own


def is_adapter_folder(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter, and not a whole model."""
    return (folder / ADAPTER_FILE).is_file()


def base_of(folder: Path) -> str:
    """Folder or hub name of the model that the adapter in ``folder`` was trained on.

    Raises:
        ValueError: It does not say.
    """
    path = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not path:
        raise ValueError(f"'{folder}/{ADAPTER_FILE}' has no `base_model_name_or_path`: its base model is unknown.")
    return str(path)


def add_adapter(model: nn.Module, config: AdapterConfig, *, base: str) -> Any:
    """``model`` with a fresh adapter (which changes nothing before it is trained), its base frozen.

    Args:
        model: A causal LM or base model of transformers.
        config: Size and place of the adapter.
        base: Folder or hub name of ``model``, written to the adapter's folder.

    Raises:
        ValueError: peft is not installed, or it does not know where to put the adapter.
    """
    peft = _peft()
    targets = config.target_modules
    lora = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets if targets is None or isinstance(targets, str) else list(targets),
        use_rslora=config.rslora,
        use_dora=config.dora,
    )
    try:
        wrapped = peft.get_peft_model(model, lora)
    except ValueError as error:
        raise ValueError(f"`adapter` does not fit {type(model).__name__}: {error}") from error
    for own in wrapped.peft_config.values():
        own.base_model_name_or_path = base
    return wrapped


def load_adapter(model: nn.Module, folder: Path, *, trainable: bool) -> Any:
    """``model`` with the adapter of ``folder``.

    Raises:
        ValueError: peft is not installed, or the adapter does not fit the model.
    """
    return _peft().PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)


def trained_state(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The entries of a module's state dict that training changes: no frozen base weight, every buffer as it is."""
    frozen = {
        name for name, parameter in module.named_parameters(remove_duplicate=False) if not parameter.requires_grad
    }
    return {name: value for name, value in state.items() if name not in frozen}


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError(_NEEDED) from error
    return peft
