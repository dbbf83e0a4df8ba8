"""Checks that several files share; each refusal is one line that names argument, rule and value."""

from __future__ import annotations

from torch import Tensor


def check_shapes(**tensors: Tensor) -> None:
    """Refuse, with ``ValueError``, tensors of different shapes; the keywords are their names in the message."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = " and ".join(f"`{name}` {shape}" for name, shape in shapes.items())
        raise ValueError(f"{listed} must have one shape.")


def two_columns(source: str, given: object, like: Tensor) -> tuple[Tensor, Tensor]:
    """What a hook gave, if it is a pair of columns.

    Args:
        source: What gave it, for the message.
        given: What it gave.
        like: A tensor of the shape that both must have.

    Raises:
        ValueError: It is no pair of tensors of that shape.
    """
    pair = given if isinstance(given, tuple | list) else (given,)
    if len(pair) == 2 and all(isinstance(x, Tensor) and x.shape == like.shape for x in pair):
        return pair[0], pair[1]
    found = ", ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in pair)
    raise ValueError(f"{source} must give two tensors of shape {tuple(like.shape)}, not ({found}).")
