"""The holder of models that are never trained: the reference policy and the reward model.

It is deliberately not an ``nn.Module``: assigned to a LightningModule it is not registered, so its weights are in no
state dict, no optimizer, no DDP or DeepSpeed wrap, and no precision plugin casts it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from lit_rlhf.models.cpu import tune

Placement = Literal["device", "cpu"]
_WAITING: ContextVar[list[FrozenModel[Any]] | None] = ContextVar("waiting", default=None)
ModelT = TypeVar("ModelT", bound=nn.Module)


@contextmanager
def models_in_host_memory() -> Iterator[list[FrozenModel[Any]]]:
    """Gives a list that gets every model of the block that waits in host memory, in the order they were made."""
    token = _WAITING.set([])
    try:
        made = _WAITING.get()
        assert made is not None
        yield made
    finally:
        _WAITING.reset(token)


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the floating-point parameters in place and leave every buffer as it is.

    ``module.to(dtype)`` would also cast the rotary embedding's ``inv_freq``, whose rounding moves every position.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


class HostWeights:
    """Parameters and buffers of a model that lives in host memory, to be lent to a device for a while.

    Args:
        model: Any module. Its weights are moved to the CPU if they are not there.
        pin: Lock the memory, so that copies to an accelerator do not stop the host. A second copy of the weights while
            it is made.
    """

    def __init__(self, model: nn.Module, *, pin: bool = False) -> None:
        self._model = model
        self._slots = list(_slots(model))
        if pin or any(tensor.device.type != "cpu" for _, _, tensor in self._slots):
            self._replace(lambda tensor: _pinned(tensor.cpu()) if pin else tensor.cpu())
            self._slots = list(_slots(model))

    @contextmanager
    def on(self, device: torch.device | str) -> Iterator[None]:
        """Copies of the weights on ``device`` inside the block, the originals after it: nothing is copied back."""
        if torch.device(device).type == "cpu":
            yield
            return
        try:
            self._replace(lambda tensor: _brought(tensor, device))
            yield
        finally:
            for owner, name, tensor in self._slots:
                setattr(owner, name, tensor)

    def tensors(self) -> list[Tensor]:
        """The weights, tied ones once."""
        return list({id(tensor): tensor.detach() for _, _, tensor in self._slots}.values())

    def move_to(self, places: Sequence[Tensor]) -> None:
        """Let ``places`` be the weights: one for each of :meth:`tensors`, with its numbers in it."""
        new = iter(places)
        self._replace(lambda _: next(new))
        self._slots = list(_slots(self._model))

    def _replace(self, change: Callable[[Tensor], Tensor]) -> None:
        """Put ``change(tensor)`` where each tensor is, once for tensors that are tied."""
        changed: dict[int, Tensor] = {}
        for owner, name, tensor in self._slots:
            if id(tensor) not in changed:
                new = change(tensor.detach())
                is_parameter = isinstance(tensor, nn.Parameter)
                changed[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_parameter else new
            setattr(owner, name, changed[id(tensor)])


def _slots(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every place of a parameter or buffer: module, attribute, tensor; tied ones more than once."""
    for module in model.modules():
        for tensors in (module.named_parameters, module.named_buffers):
            yield from ((module, name, tensor) for name, tensor in tensors(recurse=False, remove_duplicate=False))


class FrozenModel(Generic[ModelT]):
    """A model in eval mode whose parameters take no gradient, placed on a device or kept on the CPU between uses.

    Args:
        model: Any module; it is frozen in place.
        placement: ``"device"`` keeps it where :meth:`to` puts it; ``"cpu"`` keeps it in host memory and brings it to
            the device inside ``with frozen.on(device):`` only.
        dtype: Cast the parameters (never the buffers) to this; None keeps them.

    Raises:
        ValueError: Unknown placement.
    """

    def __init__(self, model: ModelT, *, placement: Placement = "device", dtype: torch.dtype | None = None) -> None:
        if placement not in ("device", "cpu"):
            raise ValueError(f"`placement` must be 'device' or 'cpu', not '{placement}'.")
        self.model: ModelT = model.requires_grad_(requires_grad=False).eval()
        self.placement: Placement = placement
        if dtype is not None:
            cast_parameters(self.model, dtype)
        self._host: HostWeights | None = None
        self._depth = 0
        waiting = _WAITING.get()
        if placement == "cpu" and waiting is not None:
            waiting.append(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output, computed without a graph."""
        with torch.no_grad():
            return self.model(*args, **kwargs)

    @property
    def device(self) -> torch.device:
        """Where the weights are now."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    def mark(self) -> str:
        """Two of the same architecture whose weights differ have different marks, whatever their dtype and device.

        A hash of the first 64 numbers of every parameter, in bfloat16: reading all of them would take seconds.
        """
        found = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            few = parameter.detach().flatten()[:64].to("cpu", torch.bfloat16)
            found.update(name.encode() + few.view(torch.int16).numpy().tobytes())
        return found.hexdigest()

    def to(self, device: torch.device | str) -> FrozenModel[ModelT]:
        """Move to ``device`` for good; with ``placement="cpu"`` nothing moves until :meth:`on`."""
        if self.placement == "device":
            self.model.to(device)
        return self

    @contextmanager
    def on(self, device: torch.device | str) -> Iterator[FrozenModel[ModelT]]:
        """Have the weights on ``device`` inside the block; with ``placement="cpu"`` give its memory back after it.

        On a CPU the model gets the CPU's kernels (``models/cpu``). Blocks may be nested. The host copy is kept (pinned
        where there is an accelerator) and pointed to again at the end, so leaving the block copies nothing and the
        weights stay the same bits.
        """
        tune(self.model, device)
        if self.placement == "device":
            self.model.to(device)
            yield self
            return
        self._depth += 1
        try:
            with self._host_weights().on(device) if self._depth == 1 else nullcontext():
                yield self
        finally:
            self._depth -= 1

    def keep_in(self, places: Sequence[Tensor]) -> None:
        """Let ``places`` be the weights in host memory: one for each of ``HostWeights(self.model).tensors()``."""
        self._host = HostWeights(self.model)
        self._host.move_to(places)

    def _host_weights(self) -> HostWeights:
        if self._host is None:
            self._host = HostWeights(self.model, pin=True)
        return self._host


def _brought(tensor: Tensor, device: torch.device | str) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
