"""What every loader stands on: ``from_pretrained`` that checks what it loaded, and a model's configuration."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_rlhf.models.checkpoint import check_weights_are_plain
from lit_rlhf.models.loading.origin import origin
from lit_rlhf.models.loading.run_dtype import run_dtype
from lit_rlhf.models.scalar import HEAD_KEY

HEAD_KEYS = (HEAD_KEY, "reward_head.weight")
"""What a scalar head's weight is called: by transformers, and by MOSS-RLHF."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def as_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """A weight dtype by its name in a config; None is the run's (``run_dtype.py``).

    Raises:
        ValueError: Not one of float32, bfloat16, float16.
    """
    if dtype is None:
        return run_dtype()
    found = _DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"`dtype` must be one of {', '.join(_DTYPES)}, not '{dtype}'.")
    return found


def load_config(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The Hugging Face configuration of a model (of its base, for an adapter), without its weights.

    Raises:
        FileNotFoundError: No such folder or hub name.
    """
    from transformers import AutoConfig

    folder = origin(path, trust_remote_code=trust_remote_code, weights=False).base
    return AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)


def load_pretrained(
    auto_class: Any, folder: Path, *, dtype: str | torch.dtype | None, attn_implementation: str | None,
    trust_remote_code: bool, **options: Any,
) -> Any:  # fmt: skip
    """``auto_class.from_pretrained`` on a local folder, on the CPU, with every dropout off; see ``load_causal_lm``.

    ``options`` are further ones of ``from_pretrained``.

    Raises:
        ValueError: Weights are missing, damaged, or a pickle with code.
    """
    from transformers import AutoConfig

    use_safetensors = check_weights_are_plain(folder)
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    with quiet(), _naming_attention(attn_implementation):
        model, info = auto_class.from_pretrained(
            str(folder), config=without_dropout(config), dtype=as_dtype(dtype), use_safetensors=use_safetensors,
            attn_implementation=attn_implementation, trust_remote_code=trust_remote_code, output_loading_info=True,
            weights_only=True, **options,
        )  # fmt: skip
    check_loaded(f"'{folder}'", model, info)
    return model


@contextmanager
def _naming_attention(wanted: str | None) -> Iterator[None]:
    """Name the option where transformers does not know or have the attention that was asked for."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if wanted is None or ("attention" not in str(error).lower() and "attn" not in str(error)):
            raise
        raise ValueError(f"`attn_implementation` ({wanted}): {' '.join(str(error).split())}") from error


def enable_checkpointing(model: Any) -> None:
    """Recompute each layer's activations in backward, in train mode."""
    # The second name is the first one's in transformers before 5.20.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def without_layers(model: Any, count: int) -> None:
    """Cut a base model or causal LM to its first ``count`` layers, in place.

    Raises:
        ValueError: It has fewer layers, or they are not found.
    """
    trunk = getattr(model, "base_model", model)
    name, layers = layer_list(trunk)
    keep_layers(trunk.config, count)
    setattr(trunk, name, layers[:count])


def keep_layers(config: Any, count: int) -> None:
    """Let a configuration say that there are ``count`` layers.

    Raises:
        ValueError: There are fewer.
    """
    text = config.get_text_config()
    total = text.num_hidden_layers
    if not 1 <= count <= total:
        raise ValueError(f"`num_layers` ({count}) must be between 1 and the model's number of layers ({total}).")
    text.num_hidden_layers = count
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:count]


def layer_list(trunk: Any) -> tuple[str, nn.ModuleList]:
    """Name and layers of a base model.

    Raises:
        ValueError: Nothing in it looks like its list of layers.
    """
    total = trunk.config.get_text_config().num_hidden_layers
    for name, child in trunk.named_children():
        if isinstance(child, nn.ModuleList) and len(child) == total:
            return name, child
    raise ValueError(f"{type(trunk).__name__} keeps its layers where they are not found: they cannot be cut or frozen.")


def freeze_first_layers(model: Any, count: int) -> None:
    """Take the embeddings and the first ``count`` layers of a base model or causal LM out of training; 0: nothing.

    Raises:
        ValueError: It has no more layers than that.
    """
    if not count:
        return
    trunk = getattr(model, "base_model", model)
    name, layers = layer_list(trunk)
    if count >= len(layers):
        raise ValueError(f"`freeze_layers` ({count}) must be less than the model's number of layers ({len(layers)}).")
    for child_name, child in trunk.named_children():  # what comes before the layers
        if child_name == name:
            break
        child.requires_grad_(requires_grad=False)
    layers[:count].requires_grad_(requires_grad=False)


def check_loaded(source: str, model: nn.Module, info: dict[str, Any], *, strict: bool = False) -> None:
    """Turn transformers' loading report into an error for what is missing, and a warning for what is left over.

    Args:
        source: Where the weights come from, for the message.
        model: What they were loaded into.
        info: The report of ``from_pretrained(..., output_loading_info=True)``.
        strict: What is left over is an error too.

    Raises:
        ValueError: A weight is missing, or has another shape.
    """
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing or info["error_msgs"]:
        shown = _listed(missing) if missing else str(info["error_msgs"])
        raise ValueError(f"{source} does not hold these weights of {type(model).__name__}: {shown}.")
    unused = sorted(key for key in info["unexpected_keys"] if key not in (*HEAD_KEYS, "lm_head.weight"))
    if unused and strict:
        raise ValueError(f"{source} holds weights that {type(model).__name__} does not have: {_listed(unused)}.")
    if unused:
        warnings.warn(f"{source} has {len(unused)} weights that are not used: {_listed(unused)}.", stacklevel=4)


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def without_dropout(config: Any) -> Any:
    """A copy of a Hugging Face configuration with every dropout probability 0, nested configurations included."""
    config = copy.deepcopy(config)
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in vars(part).copy().items():
            if "drop" in name and type(value) in (int, float):
                setattr(part, name, 0.0)
    return config


@contextmanager
def quiet() -> Iterator[None]:
    """No load report from transformers: what it would say is checked here, and its 'unexpected' heads are expected."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
