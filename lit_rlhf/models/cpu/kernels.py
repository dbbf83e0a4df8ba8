"""Linear layers that run fast on a CPU, with the numbers PyTorch's own give up to rounding.

On some CPUs (one of AMD's) the fp32 matrix products of PyTorch stay below half the speed of AVX-512; oneDNN, which
PyTorch carries for its compiler, does not. On others (Intel's, AMD's Zen 4) oneDNN is no faster or slower. Which it
is here is measured (docs/performance.md), and linear layers use the faster library in fp32; under autocast they are
bf16 products. Attention is in ``attention.py``. Nothing changes on a GPU.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lit_rlhf.models.cpu.attention import SDPA_NAME, register

ROW_STEP = 64
FEW_ROWS_STEP = 8
CLEARLY = 1.3
PRODUCTS = "LIT_RLHF_CPU_PRODUCTS"


@functools.cache
def prefers_onednn() -> bool:
    """Whether fp32 matrix products go through oneDNN: where that is `CLEARLY` faster, by a tenth of a second's look.

    The first call decides for the process. A clear margin, so that two runs on one machine decide alike, as a resumed
    run must: measured so far are ratios of 0.7 to 1.13 and of 2 and more, nothing between. The environment variable
    ``LIT_RLHF_CPU_PRODUCTS`` decides instead where it is set, to `onednn` or `torch`.

    Raises:
        ValueError: The variable is something else.
    """
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    said = os.environ.get(PRODUCTS, "")
    if said:
        if said not in ("onednn", "torch"):
            raise ValueError(f"`{PRODUCTS}` ({said}) must be onednn or torch.")
        return said == "onednn"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a thread's own clock says nothing of others that it waits for
    try:
        return _product_seconds(F.linear) > CLEARLY * _product_seconds(_product)
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _product_seconds(product: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Of this thread for one product of a micro-batch with a layer: the best of a few, since others may disturb it."""
    kind: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever the default is where it is asked first
    x, weight = torch.ones(512, 256, **kind), torch.ones(704, 256, **kind)
    with torch.autocast("cpu", enabled=False):
        return _best_seconds(product, x, weight)


def _best_seconds(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> float:
    product(x, weight)

    def seconds() -> float:
        start = time.thread_time()
        product(x, weight)
        return time.thread_time() - start

    return min(seconds() for _ in range(12))


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` in fp32 through oneDNN, two dimensions each."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")
    return out


def _low_product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` in bf16."""
    return x @ weight.t()


def _rows(x: Tensor, dtype: torch.dtype, few: int = FEW_ROWS_STEP) -> Tensor:
    """``x`` as ``(n, features)`` in ``dtype``, zero rows added up to a multiple of `ROW_STEP`, few rows of ``few``.

    oneDNN compiles a kernel for every shape it meets, for about half the price of a product and up to 2 MiB; without
    steps every micro-batch, and every step of a decode loop that drops rows, would be a new shape. A single row stays
    alone: its kernel is another one, twice as fast.
    """
    flat = x.reshape(-1, x.size(-1))
    missing = -flat.size(0) % (ROW_STEP if flat.size(0) > ROW_STEP else few)
    if flat.size(0) == 1 or not missing:
        return flat.to(dtype)
    padded = flat.new_empty(flat.size(0) + missing, flat.size(1), dtype=dtype)
    padded[: flat.size(0)] = flat
    padded[flat.size(0) :] = 0
    return padded


class _LastRows(threading.local):
    """The rows made last, for the next layers that read the same input: query, key and value, or gate and up.

    An input counts as the same by identity and version: a write that leaves the version alone (through ``.data``, or
    NumPy) between two layers would go unseen.
    """

    def __init__(self) -> None:
        self.made_of: weakref.ref[Tensor] | None = None
        self.version = 0
        self.rows: Tensor | None = None

    def of(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """:func:`_rows` of ``x``; those of the last call where ``x`` is the same and unchanged."""
        # Tensors of inference mode do not say whether they were changed.
        if torch.compiler.is_compiling() or x.is_inference():
            return _rows(x, dtype)
        known = self.made_of is not None and self.made_of() is x and self.version == x._version
        if self.rows is not None and known and self.rows.dtype == dtype:
            return self.rows
        rows = _rows(x, dtype)
        if rows.data_ptr() == x.data_ptr():  # nothing was made; a view kept here would keep its input alive
            return rows
        self.made_of, self.version, self.rows = weakref.ref(x, self._forget), x._version, rows
        return rows

    def _forget(self, _: object) -> None:
        self.made_of = self.rows = None


_last_rows = _LastRows()


def _plain_linear(x: Tensor, weight: Tensor, low: bool) -> Tensor:  # noqa: FBT001
    """``x @ weight.T`` without gradients."""
    rows = _last_rows.of(x, torch.bfloat16 if low else torch.float32)
    # Autocast keeps its bf16 copy of a trained weight, so that the steps of a rollout need not make one each.
    out = F.linear(rows, weight) if low else _product(rows, weight)
    return out[: x.numel() // x.size(-1)].view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """The same with gradients, which are products of the same kind; keeps ``x`` in the product's dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, low: bool) -> Tensor:  # noqa: FBT001
        dtype, multiply = (torch.bfloat16, _low_product) if low else (torch.float32, _product)
        rows = _last_rows.of(x, dtype)
        ctx.save_for_backward(rows, weight)
        ctx.shape, ctx.dtype, ctx.multiply = x.shape, x.dtype, multiply
        return multiply(rows, weight.to(dtype))[: x.numel() // x.size(-1)].view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        # Few rows come in every number here, and each number would be three more shapes.
        rows, flat = _rows(rows, rows.dtype, ROW_STEP), _rows(grad, rows.dtype, ROW_STEP)
        needs_x, needs_weight, _ = ctx.needs_input_grad
        grad_x = grad_weight = None
        if needs_x:
            count = grad.numel() // grad.size(-1)
            grad_x = ctx.multiply(flat, weight.to(rows.dtype).t())[:count].view(ctx.shape).to(ctx.dtype)
        if needs_weight:
            grad_weight = ctx.multiply(flat.t(), rows.t()).to(weight.dtype)
        return grad_x, grad_weight, None


class CpuLinear(nn.Linear):
    """`torch.nn.Linear` with the CPU products above; on other devices and in other dtypes it is the plain layer."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in) -> (..., out)``, in the dtype of the plain layer: fp32, or bf16 under autocast."""
        if x.device.type != "cpu" or self.weight.dtype != torch.float32:
            return super().forward(x)
        low = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if not low and (x.dtype != torch.float32 or not prefers_onednn()):
            return super().forward(x)
        multiply = _Linear.apply if torch.is_grad_enabled() else _plain_linear
        out: Tensor = multiply(x, self.weight, low)
        # Outside the product, so that the bits are the same with and without gradients.
        return out if self.bias is None else out + self.bias.to(out.dtype)


def install(model: Any) -> None:
    """Give the transformers models inside a module the kernels above, in place; attention only where it is "sdpa"."""
    register()
    prefers_onednn()  # decided here, before threads are at work
    _rename_attention(model, "sdpa", SDPA_NAME)
    _retype(model, nn.Linear, CpuLinear)


def remove(model: Any) -> None:
    """Undo :func:`install`."""
    _rename_attention(model, SDPA_NAME, "sdpa")
    _retype(model, CpuLinear, nn.Linear)


def _retype(model: nn.Module, old: type[nn.Linear], new: type[nn.Linear]) -> None:
    """Make every ``old`` layer, but no layer of a class derived from it, a ``new`` one.

    The class alone is exchanged (as ``torch.nn.utils.parametrize`` does): a new object in its place would lose hooks,
    and would be unknown to whoever holds the layer already, such as a :class:`~lit_rlhf.models.causal.Projection`.
    """
    for module in model.modules():
        if type(module) is old:
            module.__class__ = new


def _rename_attention(model: nn.Module, old: str, new: str) -> None:
    module: Any
    for module in model.modules():
        settable = getattr(module, "_can_set_attn_implementation", None)  # a model that cannot would warn every time
        if settable is not None and settable() and module.config._attn_implementation == old:
            module.set_attn_implementation(new)
