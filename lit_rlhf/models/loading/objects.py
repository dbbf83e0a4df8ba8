"""Models that are loaded already, where a folder or a hub name may stand."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from lit_rlhf.models.loading.pretrained import quiet
from lit_rlhf.models.scalar import merged

if TYPE_CHECKING:
    ModelLike = str | os.PathLike[str] | tuple[Any, Any]
else:
    ModelLike = str
"""What modules take: a folder or a hub name, or in Python a pair (model, tokenizer). YAML knows strings alone."""

_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when the interpreter ends."""


def model_source(value: Any, name: str) -> str:
    """The folder or hub name that ``value`` is; a pair of loaded objects is written to a temporary folder.

    Everything that is made of a model (a reference, a critic, the copy without dropout that is trained) is read from
    there, so that the objects given stay as they are.

    Args:
        value: A path, a hub name, or (model, tokenizer) of the transformers library; adapters are merged.
        name: The argument's name, for messages.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple | list) and len(value) == 2 and all(hasattr(x, "save_pretrained") for x in value):
        model, tokenizer = value
        if not hasattr(model, "state_dict") or hasattr(tokenizer, "state_dict"):
            raise ValueError(f"`{name}` must be a pair in this order: (model, tokenizer).")
        folder = tempfile.TemporaryDirectory(prefix="lit_rlhf-")
        _FOLDERS.append(folder)
        with quiet():
            merged(model).save_pretrained(folder.name)
            tokenizer.save_pretrained(folder.name)
        return folder.name
    raise ValueError(
        f"`{name}` must be a folder, a hub name, or a pair (model, tokenizer) of loaded objects, not a "
        f"{type(value).__name__}."
    )
