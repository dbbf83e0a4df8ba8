"""LoRA adapters by peft: fresh ones, ones that go on being trained, and their folders.

An adapter folder is peft's own: ``adapter_config.json`` names the base model, ``adapter_model.safetensors`` holds the
adapter and, for a reward model or critic, the head (``modules_to_save: [score]``). Plain peft loads it.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lit_rlhf.config import AdapterConfig
from lit_rlhf.models.checkpoint import load_pickle

ADAPTER_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
LAYERS_FILE = "lit_rlhf.json"
"""Beside an adapter on the first layers of its base alone: how many they are, which peft has no word for."""
HEAD = "score.weight"
_ROOT = "base_model.model."
_FIXED = {"r": "r", "alpha": "lora_alpha", "rslora": "use_rslora", "dora": "use_dora"}


def is_adapter_folder(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter, and not a whole model."""
    return (folder / ADAPTER_FILE).is_file()


def base_of(folder: Path) -> str:
    """Folder or hub name of the model that the adapter in ``folder`` was trained on.

    Raises:
        ValueError: It does not say.
    """
    path = _stored(folder).get("base_model_name_or_path")
    if not path:
        raise ValueError(f"'{folder / ADAPTER_FILE}' has no `base_model_name_or_path`: its base model is unknown.")
    return str(path)


def layers_of(folder: Path) -> int | None:
    """How many layers of the base an adapter in ``folder`` is on; None for all."""
    file = folder / LAYERS_FILE
    return int(json.loads(file.read_text(encoding="utf-8"))["num_layers"]) if file.is_file() else None


def stored_config(folder: Path) -> AdapterConfig:
    """Size and place of the adapter in ``folder``.

    Raises:
        ValueError: It is no LoRA adapter, or has options that are not known here.
    """
    stored = _stored(folder)
    if stored.get("peft_type") != "LORA":
        raise ValueError(f"'{folder}' must hold a LoRA adapter, not `peft_type` ({stored.get('peft_type')}).")
    others = sorted(set(stored.get("modules_to_save") or ()) - {"score", "classifier"})
    if others or stored.get("bias", "none") != "none":
        raise ValueError(
            f"The adapter in '{folder}' has more than LoRA layers and a score head (`modules_to_save` {others}, `bias` "
            f"{stored.get('bias')}), which is not supported: merge it with peft."
        )
    options: dict[str, Any] = {own: stored[name] for own, name in _FIXED.items() if name in stored}
    return AdapterConfig(**options, target_modules=stored.get("target_modules"))


def new_adapter(model: nn.Module, config: AdapterConfig, *, base: str) -> Any:
    """``model`` with a fresh adapter, which changes nothing before it is trained; all other weights are frozen.

    Args:
        model: A causal LM or base model of transformers; its layers are wrapped in place.
        config: Size and place of the adapter.
        base: Folder or hub name of ``model``, for the adapter's folder.

    Raises:
        ValueError: peft is not installed, or it does not know where to put the adapter.
    """
    peft = _peft()
    targets = config.target_modules
    lora = peft.LoraConfig(
        target_modules=targets if targets is None or isinstance(targets, str) else list(targets),
        lora_dropout=config.dropout,
        **{name: getattr(config, own) for own, name in _FIXED.items()},
    )
    return _wrapped(model, lora, base)


def stored_adapter(
    model: nn.Module, folder: Path, config: AdapterConfig | None = None, *, num_layers: int | None = None
) -> Any:
    """``model`` with the adapter of ``folder``, trainable; a head that lies beside it is left out.

    Args:
        model: A causal LM or base model of transformers; its layers are wrapped in place.
        folder: An adapter folder.
        config: What it must agree with, where it goes on being trained; its dropout counts.
        num_layers: Layers that ``model`` has been cut to: what the folder has for others is left out.

    Raises:
        ValueError: peft is not installed, the adapter does not fit the model, or is another one than ``config`` says.
    """
    peft, stored = _peft(), stored_config(folder)
    if config is not None:
        _check_agrees(config, stored, folder)
    lora = peft.LoraConfig.from_pretrained(str(folder))
    lora.modules_to_save, lora.task_type, lora.inference_mode = None, None, False
    lora.lora_dropout = 0.0 if config is None else config.dropout
    if not isinstance(lora.target_modules, str | None):
        # Whole names, where the adapter was put on a whole model: peft takes their ends, which a trunk has too.
        inside = f"{getattr(model, 'base_model_prefix', '')}."
        lora.target_modules = {name.removeprefix(inside) for name in lora.target_modules}
    wrapped = _wrapped(model, lora, base_of(folder))
    weights = {
        key: value
        for key, value in adapter_weights(folder).items()
        if not key.endswith(HEAD) and (num_layers is None or _layer_of(key) < num_layers)
    }
    set_adapter_weights(wrapped, weights, source=f"The adapter in '{folder}'")
    return wrapped


def adapter_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of an adapter folder, on the CPU; tensors are all that is read.

    Raises:
        FileNotFoundError: There are none.
        ValueError: A file is damaged, or a pickle that would run code.
    """
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"'{folder}' has an {ADAPTER_FILE} and no {' or '.join(WEIGHT_FILES)}.")
    if file.suffix == ".bin":
        return load_pickle(file)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(file))
    except SafetensorError as error:
        raise ValueError(f"'{file}' is not a whole safetensors file: {error}") from error


def adapter_head(folder: Path) -> Tensor | None:
    """The head's weight ``(1, H)`` in an adapter folder, or None."""
    return next((value for key, value in adapter_weights(folder).items() if key.endswith(HEAD)), None)


def set_adapter_weights(model: Any, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Put the weights of an adapter's folder where they belong.

    An adapter that was trained on a causal LM fits the trunk of a scalar model, and the other way round: the names
    differ by what the trunk is called inside.

    Raises:
        ValueError: A weight is missing, left over, or has another shape.
    """
    peft = _peft()
    wanted = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    own = model.get_base_model()
    inside = f"{_ROOT}{own.base_model_prefix}."
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        names = (key, _ROOT + key.removeprefix(inside), inside + key.removeprefix(_ROOT))
        found[next((name for name in names if name in wanted), key)] = value
    odd = sorted(wanted.keys() ^ found.keys())
    odd += [key for key in wanted.keys() & found.keys() if wanted[key].shape != found[key].shape]
    if odd:
        raise ValueError(f"{source} does not fit {type(own).__name__}: {len(odd)} weights differ, such as {odd[0]}.")
    for key, value in wanted.items():
        value.copy_(found[key])


def save_adapter(model: Any, folder: Path, *, prefix: str = "", head: Tensor | None = None) -> None:
    """Write the adapter of ``model`` into ``folder``, as plain peft reads it.

    Args:
        model: A PEFT model.
        folder: Exists already.
        prefix: What a sequence classifier calls the trunk; empty for a causal LM.
        head: Weight of the scalar head, ``(1, H)``.
    """
    from safetensors.torch import save_file

    state = _peft().get_peft_model_state_dict(model, save_embedding_layers=False)
    inside = f"{_ROOT}{prefix}." if prefix else _ROOT
    weights = {inside + key.removeprefix(_ROOT): value for key, value in state.items()}
    config = next(iter(model.peft_config.values()))
    content = json.loads(json.dumps(config.to_dict(), default=_plain))
    content |= {"task_type": "CAUSAL_LM", "inference_mode": True}
    if head is not None:
        weights[_ROOT + HEAD] = head
        content |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
    save_file(
        {key: value.detach().to("cpu").contiguous() for key, value in weights.items()},
        folder / WEIGHT_FILES[0],
        metadata={"format": "pt"},
    )
    text = json.dumps(content, indent=2, sort_keys=True)
    (folder / ADAPTER_FILE).write_text(text + "\n", encoding="utf-8")


def is_adapted(model: Any) -> bool:
    """Whether ``model`` is a PEFT model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def frozen_names(module: nn.Module) -> set[str]:
    """Names of the parameters that take no gradient, every name of a tied one."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in parameters if not parameter.requires_grad}


def _layer_of(key: str) -> int:
    """Number of the layer that a weight is in: the first number in its name; -1 for one that is in none."""
    found = re.search(r"\.(\d+)\.", key)
    return int(found[1]) if found else -1


def _plain(value: Any) -> Any:
    """For JSON: sets and enumerations, which peft's config is full of."""
    return sorted(value) if isinstance(value, set) else getattr(value, "value", str(value))


def _stored(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"'{folder / ADAPTER_FILE}' is no JSON: {error}.") from error
    return content


def _check_agrees(config: AdapterConfig, stored: AdapterConfig, folder: Path) -> None:
    asked, there = asdict(config), asdict(stored)
    for name in (*_FIXED, "target_modules"):
        same = asked[name] == there[name] or (name == "target_modules" and _same_targets(asked[name], there[name]))
        if not same:
            raise ValueError(
                f"`adapter.{name}` ({asked[name]}) must be that of the adapter in '{folder}' ({there[name]}), which "
                "goes on being trained."
            )


def _same_targets(asked: Any, there: Any) -> bool:
    """Unsaid, or the same names; `all-linear` was spelled out when the adapter was made."""
    lists = isinstance(asked, list | tuple) and isinstance(there, list | tuple)
    return asked in (None, "all-linear") or (lists and set(asked) == set(there))


def _wrapped(model: nn.Module, lora: Any, base: str) -> Any:
    try:
        with _quiet():
            wrapped = _peft().get_peft_model(model, lora)
    except ValueError as error:
        raise ValueError(f"`adapter` does not fit {type(model).__name__}: {str(error).splitlines()[0]}") from error
    for own in wrapped.peft_config.values():
        own.base_model_name_or_path = base
    return wrapped


@contextmanager
def _quiet() -> Iterator[None]:
    """Without peft's words on names that are set here afterwards, and transformers' on what peft calls."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*base_model_name_or_path.*")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*")
        warnings.filterwarnings("ignore", ".*fan_in_fan_out.*")  # GPT-2's layers, which peft then treats right
        yield


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError("`adapter` needs peft: pip install 'lit-rlhf[peft]'.") from error
    return peft
