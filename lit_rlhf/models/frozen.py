"""The holder of models that are never trained: the reference policy and the reward model.

It is deliberately not an ``nn.Module``: assigned to a LightningModule it is not registered, so its weights are in no
state dict, no optimizer, no DDP or DeepSpeed wrap, and no precision plugin casts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, Literal, TypeVar

import torch
from torch import Tensor, nn

from lit_rlhf.models.cpu import tune

Placement = Literal["device", "cpu"]
ModelT = TypeVar("ModelT", bound=nn.Module)


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast the floating-point parameters in place and leave every buffer as it is.

    ``module.to(dtype)`` would also cast the rotary embedding's ``inv_freq``, whose rounding moves every position.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model


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
        self._host: list[tuple[Tensor, Tensor]] = []
        self._depth = 0

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

    def to(self, device: torch.device | str) -> FrozenModel[ModelT]:
        """Move to ``device`` for good; with ``placement="cpu"`` nothing moves until :meth:`on`."""
        if self.placement == "device":
            self.model.to(device)
        return self

    @contextmanager
    def on(self, device: torch.device | str) -> Iterator[FrozenModel[ModelT]]:
        """Have the weights on ``device`` inside the block; with ``placement="cpu"`` give its memory back after it.

        On a CPU the model gets the CPU's kernels (``models/cpu``).
        Blocks may be nested. The host copy is kept (pinned where there is an accelerator) and pointed to again at the
        end, so leaving the block copies nothing and the weights stay the same bits.
        """
        tune(self.model, device)
        if self.placement == "device":
            self.model.to(device)
            yield self
            return
        try:
            self._enter(torch.device(device))
            yield self
        finally:
            self._leave()

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.model.parameters()
        yield from self.model.buffers()

    def _enter(self, device: torch.device) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        if not self._host:
            self._host = [(t, _pinned(t.data)) for t in self._tensors()]
        for tensor, host in self._host:
            tensor.data = _brought(host, device)

    def _leave(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            for tensor, host in self._host:
                tensor.data = host


def _brought(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
