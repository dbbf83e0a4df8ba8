"""What a path names: a whole model, or an adapter and the model it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lit_rlhf.models.adapters import base_of, is_adapter_folder
from lit_rlhf.models.checkpoint import resolve_folder


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model comes from.

    Attributes:
        base: Folder of the whole model.
        name: Its folder or hub name, as it was given.
        adapter: Folder of the adapter on it, or None.
    """

    base: Path
    name: str
    adapter: Path | None = None


def origin(path: str | Path, *, trust_remote_code: bool = False, weights: bool = True) -> Origin:
    """What ``path`` names.

    Args:
        path: A folder, or a hub name such as ``org/model``.
        trust_remote_code: Also fetch the Python files of a hub repository.
        weights: Also fetch the weights; False for the configuration and the tokenizer only.

    Raises:
        FileNotFoundError: There is no such model, or the base of the adapter is not there.
        ValueError: An adapter that does not name its base, or names another adapter.
    """
    folder = resolve_folder(path, trust_remote_code=trust_remote_code, weights=weights)
    if not is_adapter_folder(folder):
        return Origin(base=folder, name=str(path))
    name = base_of(folder)
    try:
        base = resolve_folder(name, trust_remote_code=trust_remote_code, weights=weights)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} It is the `base_model_name_or_path` of the adapter in '{folder}'.") from error
    if is_adapter_folder(base):
        raise ValueError(f"The base of the adapter in '{folder}' ('{name}') must be a whole model, not an adapter.")
    return Origin(base=base, name=name, adapter=folder)


def with_file(path: str | Path, file: str, *, trust_remote_code: bool = False) -> Path:
    """The folder of ``path`` if it has ``file``, else that of its base.

    Raises:
        FileNotFoundError: There is no such model.
    """
    folder = resolve_folder(path, trust_remote_code=trust_remote_code, weights=False)
    if (folder / file).is_file() or not is_adapter_folder(folder):
        return folder
    return origin(path, trust_remote_code=trust_remote_code, weights=False).base
