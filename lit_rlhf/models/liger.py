"""Liger's fused norms, rotary embedding and MLP in models on a GPU: `model.liger_kernel`.

`liger-kernel <https://github.com/linkedin/Liger-Kernel>`_ (Hsu et al. 2024, arXiv 2410.10989) writes them in Triton and
knows which architecture computes what. Here is only what it does not do: to refuse where it would do nothing, and to
keep what it exchanges in a whole module of transformers away from models that are not on a GPU.

Its losses are left out: log-probabilities are our own, at response positions alone.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

OPTION = "`model.liger_kernel`"
_PARTS = {"rope": True, "rms_norm": True, "cross_entropy": False, "fused_linear_cross_entropy": False}


def use_liger(models: Iterable[nn.Module], device: torch.device | str) -> bool:
    """Give the transformers models inside ``models`` Liger's kernels, in place, if they are going to run on a GPU.

    Parameters, their names and what a checkpoint holds stay; outputs and gradients are equal up to rounding (compared
    in fp32). Calling it again changes nothing. The rotary embedding is a function of the architecture's source: all its
    models on a GPU in this process have the fused one from then on.

    Args:
        models: Modules with transformers models in them, or such models.
        device: Where they are going to run.

    Returns:
        Whether that is a GPU; elsewhere the models stay as they are.

    Raises:
        ImportError: liger-kernel is not installed.
        ValueError: It has no kernels for an architecture, or there is no transformers model.
    """
    if not _runs_on(torch.device(device)):
        return False
    try:
        from liger_kernel.transformers import _apply_liger_kernel_to_instance
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    except ImportError as error:
        raise ImportError(f"{OPTION} needs liger-kernel: pip install 'lit-rlhf[liger]' ({error}).") from error
    found = list(_transformers_models(models))
    if not found:
        raise ValueError(f"{OPTION}: there is no model of transformers to give them to.")
    for model in found:
        kind = model.config.model_type
        if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
            known = ", ".join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))
            raise ValueError(f"{OPTION}: liger-kernel has no kernels for '{kind}', only for {known}.")
        with ExitStack() as sources:  # a subclass of somebody's own has its layers from the class it derives from
            names = {each.__module__ for each in type(model).__mro__}
            for name in filter(lambda each: each.startswith("transformers.models."), names):
                sources.enter_context(_kept(sys.modules[name]))
            try:
                _apply_liger_kernel_to_instance(model, **_PARTS)
            except NotImplementedError as error:
                raise ValueError(f"{OPTION}: liger-kernel has not all kernels for '{kind}': {error}") from error
    return True


def _runs_on(device: torch.device) -> bool:
    """A GPU; or the tests' interpreter of Triton, which runs its kernels on a CPU, some thousand times slower."""
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def _transformers_models(models: Iterable[nn.Module]) -> Iterator[Any]:
    """The outermost of each: Liger finds its own way in from there."""
    from transformers import PreTrainedModel

    for module in models:
        if isinstance(module, PreTrainedModel):
            yield module
        else:
            yield from _transformers_models(module.children())


@contextmanager
def _kept(module: ModuleType) -> Iterator[None]:
    """Of what the block exchanges in ``module``, functions stay, for tensors on a GPU alone; classes are put back.

    Liger exchanges what it has put into the model in the model's source as well, for models to come. Those may be on
    any device; and a function of that source, such as the rotary embedding, has no other place to be exchanged in.
    """
    before = dict(vars(module))
    try:
        yield
    finally:
        for name, was in before.items():
            now = vars(module).get(name, was)
            if now is was or not callable(was):
                continue
            keeps = isinstance(was, type) or hasattr(was, "_lit_rlhf_liger")
            setattr(module, name, was if keeps else _by_device(was, now))


def _by_device(plain: Callable[..., Any], fused: Callable[..., Any]) -> Callable[..., Any]:
    """``fused`` where the first argument (a rotary embedding's ``q``) is on a GPU, else ``plain``."""

    @functools.wraps(plain)
    def chosen(q: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (fused if _runs_on(q.device) else plain)(q, *args, **kwargs)

    chosen._lit_rlhf_liger = True  # type: ignore[attr-defined]
    return chosen
