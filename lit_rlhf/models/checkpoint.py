"""Where a model's files are and what is in them, read without running anything they carry.

Only tensors are ever read: safetensors where there are any, otherwise ``pytorch_model*.bin`` through torch's
restricted unpickler (``weights_only=True``). A pickle that asks for anything else is refused.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.files import is_torch_file

_TOKENIZER_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]


def resolve_folder(path: str | Path, *, trust_remote_code: bool = False, weights: bool = True) -> Path:
    """The local folder behind ``path``: itself, or the hub snapshot of that name (downloaded when not cached).

    Args:
        path: A folder, or a hub name such as ``org/model``.
        trust_remote_code: Also fetch the Python files of a hub repository.
        weights: Also fetch the weights; False for the configuration and the tokenizer only.

    Raises:
        FileNotFoundError: ``path`` is no folder, and it looks like a local path or the hub does not give it.
        ValueError: It is a GGUF file, or a folder with nothing else in it.
    """
    folder = Path(path).expanduser()
    _refuse_gguf(folder)
    if folder.is_dir():
        return folder
    if _looks_local(str(path)):
        raise FileNotFoundError(f"No model folder at '{path}'.")
    return _hub_snapshot(str(path), trust_remote_code=trust_remote_code, weights=weights)


def _refuse_gguf(path: Path) -> None:
    if path.is_dir() and not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
        found = next(iter(sorted(path.glob("*.gguf"))), None)
    else:
        found = path if path.suffix == ".gguf" and path.is_file() else None
    if found is not None:
        raise ValueError(
            f"'{path}' is a GGUF model without config.json, which cannot be trained: convert it first (docs/models.md)."
        )


def _looks_local(path: str) -> bool:
    """Whether ``path`` cannot be meant as ``name`` or ``organization/name`` on the hub."""
    if path.startswith(("/", ".", "~")) or path.endswith("/") or path.count("/") > 1 or "\\" in path:
        return True
    return "/" in path and Path(path).parent.is_dir()


def _hub_snapshot(name: str, *, trust_remote_code: bool, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = _TOKENIZER_FILES + (["*.py"] if trust_remote_code else [])
    try:
        if not weights:
            return Path(snapshot_download(name, allow_patterns=patterns))
        folder = Path(
            snapshot_download(name, allow_patterns=[*patterns, "model*.safetensors", "adapter_model*.safetensors"])
        )
        if not list(folder.glob("*model*.safetensors")):
            snapshot_download(name, allow_patterns=[*patterns, "pytorch_model*.bin"])
        return folder
    except (OSError, ValueError, RuntimeError) as error:
        # The hub client has its own family of errors, all of them under these three.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"'{name}' is neither a folder here nor a model the hub gives: {reason}") from error


def weight_files(folder: Path) -> list[Path]:
    """The weight files of an HF folder: safetensors when there are any, else ``pytorch_model*.bin``.

    Raises:
        FileNotFoundError: There are none, or the index names one that is missing.
        ValueError: The index names a file outside the folder.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        single = folder / f"{stem}.{suffix}"
        if single.is_file():
            return [single]
        if index.is_file():
            return _indexed_files(index)
    raise FileNotFoundError(f"No model.safetensors or pytorch_model.bin (or their index) in '{folder}'.")


def _indexed_files(index: Path) -> list[Path]:
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"'{index}' names a shard outside its own folder: '{name}'.")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"'{index}' names '{name}', which is missing: the model is incomplete.")
    return [index.parent / name for name in names]


def check_weights_are_plain(folder: Path) -> bool:
    """Read every pickle of the folder with the restricted unpickler, before any library opens it.

    Returns:
        True when the weights are safetensors (nothing to check), False when they are pickles without code.

    Raises:
        ValueError: A pickle would execute code, or a file is damaged.
    """
    files = weight_files(folder)
    if files[0].suffix == ".safetensors":
        return True
    for file in files:
        load_pickle(file)
    return False


def tensor_keys(folder: Path) -> dict[str, Path]:
    """Every tensor name of an HF folder and the file that holds it."""
    keys: dict[str, Path] = {}
    for file in weight_files(folder):
        keys.update(dict.fromkeys(_file_keys(file), file))
    return keys


def _file_keys(file: Path) -> list[str]:
    if file.suffix != ".safetensors":
        return list(load_pickle(file))
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except SafetensorError as error:
        raise ValueError(f"'{file}' is not a whole safetensors file: {error}") from error


def read_tensor(file: Path, key: str) -> Tensor:
    """One tensor of a weight file, on the CPU, in its stored dtype."""
    if file.suffix != ".safetensors":
        tensor: Tensor = load_pickle(file)[key]
        return tensor
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        stored: Tensor = opened.get_tensor(key)
        return stored


def load_pickle(file: str | Path) -> dict[str, Any]:
    """The content of a torch file, tensors and primitives only, on the CPU (memory-mapped where the format allows).

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is of another kind, would execute code when it is opened, is damaged, or holds no dict.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"No checkpoint file at '{file}'.")
    if not is_torch_file(file):
        raise ValueError(f"'{file}' is no torch checkpoint.")
    zipped = zipfile.is_zipfile(file)  # legacy files cannot be memory-mapped
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(file, error)) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"'{file}' is not a whole torch checkpoint: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"'{file}' must hold a dict of tensors, not a {type(content).__name__}.")
    return content


def _refusal(file: str | Path, error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if "GLOBAL" in line or "unsupported" in line.lower()]
    wanted = f" ({lines[0].strip()})" if lines else ""
    return (
        f"Refused to open '{file}': it holds more than tensors and could run code when opened{wanted}. "
        "Ask its author for safetensors, or convert it where nothing can be harmed."
    )
