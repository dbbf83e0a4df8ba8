"""A second device without hardware: its tensors hold CPU data, refuse what CUDA refuses, and count where a host waits.

Built from torch's own means for backends in Python: a tensor subclass on the device type that is kept free for such
backends (PrivateUse1), and a fallback kernel for it. Whatever the library does with such tensors runs on the CPU, after
the checks of a real accelerator: operands on two devices, indices, generators, pinned memory, NumPy.

Importing this module changes the process (torch then reports an accelerator): do it in a process of its own, see
``tests/test_pretend_device.py``. It sees neither memory, streams, kernels, speed nor other dtypes' rounding, and
``torch.cuda`` is not faked.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
_setup_privateuseone_for_python_backend(NAME)
getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
DEVICE = torch.device(NAME, 0)

WAITS: collections.Counter[tuple[str, str]] = collections.Counter()
"""What a host would have waited for, and in which function of the library: how often."""

aten = torch.ops.aten
_WAITING: dict[Any, str] = {
    aten._local_scalar_dense.default: "one number",
    aten.is_nonzero.default: "one number",
    aten.equal.default: "one number",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "mask as index",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.repeat_interleave.Tensor: "repeat",
}
_COPYING = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_NO_HOST_SCALARS = {aten.cat.default, aten.stack.default, aten.gather.default, aten.scatter.src, aten.embedding.default}


class PretendTensor(torch.Tensor):
    """A tensor on :data:`DEVICE` around the CPU tensor ``held``."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> PretendTensor:
        made: PretendTensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held.detach()
        return made

    def __repr__(self, **_: Any) -> str:
        return f"PretendTensor({self.held!r})"

    def tolist(self) -> Any:
        _wait("copy to the host")
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first")

    def pin_memory(self, *_: Any) -> Any:
        raise RuntimeError("cannot pin a tensor that is on the device")

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:
        _wait("copy to the host")  # a checkpoint holds plain tensors
        return self.held.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copy = PretendTensor(self.held.clone())
        return torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


def _run(op: Any, args: Any, kwargs: Any) -> Any:
    """Check the operands as an accelerator would, note a wait, and compute on what the tensors hold."""
    flat, spec = tree_flatten((args, kwargs))
    ours = [x for x in flat if isinstance(x, PretendTensor)]
    given = kwargs.get("device")
    here = bool(ours) if given is None else torch.device(given).type == NAME
    if ours:
        _check_operands(op, args, [x for x in flat if isinstance(x, torch.Tensor)])
        _note_wait(op, args, kwargs, here=here)
    generators = [x for x in flat if isinstance(x, torch.Generator)]
    if here and any(generator.device.type == "cpu" for generator in generators):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu'")
    plain_args, plain_kwargs = tree_unflatten([_plain(x) for x in flat], spec)
    plain_kwargs.pop("non_blocking", None)
    plain_kwargs.pop("pin_memory", None)
    out = op(*plain_args, **plain_kwargs)
    # An operation in place gives back the tensor it was called on.
    written = any(a.alias_info is not None and a.alias_info.is_write for a in op._schema.arguments)
    owners = {id(x.held): x for x in ours} if written else {}

    def back(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or isinstance(x, PretendTensor):
            return x
        if id(x) in owners:
            assert owners[id(x)].shape == x.shape, f"{op} gives a tensor another shape in place, which is not simulated"
            return owners[id(x)]
        return PretendTensor(x) if here else x

    return tree_map(back, out)


def _plain(x: Any) -> Any:
    if isinstance(x, PretendTensor):
        return x.held
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x


def _check_operands(op: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """What CUDA says to tensors on two devices. A number from the CPU (no dimensions) is welcome in arithmetic."""
    if op in _COPYING:
        return
    if op in _INDEXING:
        if not isinstance(args[0], PretendTensor) and any(isinstance(i, PretendTensor) for i in args[1]):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        tensors = [args[0], *args[2:3]]
    for tensor in tensors:
        if not isinstance(tensor, PretendTensor) and (tensor.dim() > 0 or op in _NO_HOST_SCALARS):
            raise RuntimeError(f"Expected all tensors to be on the same device, found {DEVICE} and cpu ({op})")


def _note_wait(op: Any, args: Any, kwargs: Any, *, here: bool) -> None:
    """Count what makes CUDA's host wait, as ``torch.cuda.set_sync_debug_mode`` would report it."""
    if op in _WAITING:
        _wait(_WAITING[op])
    elif op is aten._to_copy.default:
        if not here:
            _wait("copy to the host")
    elif op in (aten.copy_.default, aten._copy_from.default):
        source, target = (args[1], args[0]) if op is aten.copy_.default else (args[0], args[1])
        crosses = isinstance(source, PretendTensor) != isinstance(target, PretendTensor)
        asynchronous = kwargs.get("non_blocking") or any(x is True for x in args[2:])
        if crosses and not asynchronous:
            _wait("copy to the device" if isinstance(target, PretendTensor) else "copy to the host")
    elif op in _INDEXING:
        index = [i for i in args[1] if i is not None]
        fill = op is not aten.index.Tensor and args[2].numel() == 1  # `x[mask] = number` is a masked fill
        if any(i.dtype in (torch.bool, torch.uint8) for i in index) and not fill:
            _wait("mask as index")
        elif any(not isinstance(i, PretendTensor) for i in index):
            _wait("index from the host")


def _wait(kind: str) -> None:
    WAITS[kind, _place(sys._getframe(1))] += 1


def _place(frame: FrameType | None) -> str:
    """The innermost function of the library on the stack, as ``room/file.py:function``."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if "lit_rlhf" in path.parts[:-1] and "site-packages" not in path.parts:
            inside = path.parts[len(path.parts) - 1 - path.parts[::-1].index("lit_rlhf") + 1 :]
            return f"{'/'.join(inside)}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


# What is reached without the subclass: factories (`torch.zeros(2, device=...)`). Torch builds most of them from
# `empty`; the ones named here would change its shape in place, or copy without asking the subclass.
_FACTORIES = ("arange", "arange.start", "arange.start_step", "linspace", "randperm", "randperm.generator", "eye")
_fallback = torch.library.Library("_", "IMPL")
_fallback.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
_kernels = torch.library.Library("aten", "IMPL")
for _name in ("copy_", *_FACTORIES):
    _packet, _, _overload = _name.partition(".")
    _op = getattr(getattr(aten, _packet), _overload or "default")
    _kernels.impl(_name, lambda *args, _op=_op, **kwargs: _run(_op, args, kwargs), "PrivateUse1")


class PretendAccelerator(CPUAccelerator):
    """What Lightning asks of an accelerator."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing to set up."""

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]


def make_trainer(root: Path, device: torch.device, **options: Any) -> L.Trainer:
    """A silent trainer on ``device``, this one or the CPU."""
    accelerator = PretendAccelerator() if device.type == NAME else CPUAccelerator()
    defaults: dict[str, Any] = {
        "default_root_dir": str(root),
        "strategy": SingleDeviceStrategy(device=device, accelerator=accelerator),
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "devices": 1,
    }
    return L.Trainer(**{**defaults, **options})


def waits(work: Callable[[], Any]) -> dict[str, int]:
    """How often the host waited in ``work()``, by place and kind."""
    before = WAITS.copy()
    work()
    return {f"{place} ({kind})": count for (kind, place), count in sorted((WAITS - before).items())}
