"""Several models on one set of frozen base weights.

Models that differ in their adapters alone share their base: each is a skeleton of its own (modules, buffers, hooks)
whose base parameters are the same tensors. So policy, reference, critic and reward of PPO cost one base in memory,
none has to be switched on before it is used, and a backward that recomputes activations meets the adapter it ran with.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_ATTRIBUTE = "_lit_rlhf_base"


class SharedBase:
    """A frozen model whose parameters are lent to skeletons; it lives as long as one of them does.

    Attributes:
        model: The model; never run itself.
        kind: How its linear layers are kept: the name of a dtype, or `nf4`.
    """

    def __init__(self, model: nn.Module, kind: str) -> None:
        self.model, self.kind = model.requires_grad_(requires_grad=False), kind

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedBase:
        return self  # a copy of a skeleton keeps the same base alive


_bases: weakref.WeakValueDictionary[tuple[Any, ...], SharedBase] = weakref.WeakValueDictionary()


def live_base(key: tuple[Any, ...]) -> SharedBase | None:
    """The base under ``key`` that somebody holds; None too where a strategy has cast its weights since."""
    base = _bases.get(key)
    if base is None or base.kind == "nf4":
        return base
    wanted = getattr(torch, base.kind)
    return base if all(p.dtype == wanted for p in base.model.parameters()) else None


def base_for(key: tuple[Any, ...], kind: str, load: Callable[[], nn.Module]) -> SharedBase:
    """The live base under ``key``, or a new one where there is none of this kind.

    Args:
        key: What the weights are: their folder, and what class they were read into.
        kind: The name of a dtype, or `nf4`.
        load: Loads the model.
    """
    base = live_base(key)
    if base is None or base.kind != kind:
        base = _bases[key] = SharedBase(load(), kind)
    return base


def skeleton(base: SharedBase) -> Any:
    """Modules and buffers of their own around the very parameters of ``base``."""
    shared: dict[int, Any] = {id(p): p for p in base.model.parameters()}
    for module in base.model.modules():
        state = getattr(module, "quant_state", None)  # belongs to a 4-bit weight
        if state is not None:
            shared[id(state)] = state
    own = copy.deepcopy(base.model, shared)
    keep_alive(own, base)
    return own


def keep_alive(model: nn.Module, base: SharedBase) -> None:
    """Have ``model`` hold its base; not as a sub-module, so that nothing sees it twice."""
    object.__setattr__(model, _ATTRIBUTE, base)


def held_base(model: Any) -> SharedBase | None:
    """The base that ``model``, a skeleton, shares; None for a model of its own."""
    base: SharedBase | None = getattr(model, _ATTRIBUTE, None)
    return base
