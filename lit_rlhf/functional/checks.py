"""Checks that several files share; each refusal is one line that names argument, rule and value."""

from __future__ import annotations

from torch import Tensor


def check_shapes(**tensors: Tensor) -> None:
    """Refuse, with ``ValueError``, tensors of different shapes; the keywords are their names in the message."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = " and ".join(f"`{name}` {shape}" for name, shape in shapes.items())
        raise ValueError(f"{listed} must have one shape.")
