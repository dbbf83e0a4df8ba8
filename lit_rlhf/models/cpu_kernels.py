"""Linear layers and attention that run fast on a CPU, with the numbers PyTorch's own give up to rounding.

Two measured facts (docs/performance.md) are behind this file, and nothing changes on a GPU:

- On AMD CPUs the fp32 matrix products of PyTorch stay below half the speed of AVX-512; oneDNN, which PyTorch carries
  for its compiler, does not.
- Under bf16 autocast PyTorch runs attention in bf16 as well, which at the lengths and head sizes of small models is
  slower than fp32 by up to four times; the matrix products of the linear layers are 4 to 8 times faster in bf16.

So, on a CPU, linear layers use oneDNN in fp32 and bf16 products with fp32 results under autocast, and attention is
always fp32.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SDPA_NAME = "lit_sdpa"
SDPA_NAMES = ("sdpa", SDPA_NAME)
"""Attention implementations that take a bool mask, as `scaled_dot_product_attention` does."""


@functools.cache
def prefers_onednn() -> bool:
    """Whether fp32 matrix products go through oneDNN: AMD CPU, AVX-512, and a PyTorch that carries the operator."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8", errors="replace")


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` in fp32 through oneDNN."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, None, "none", [], "")
    return out


class _OneDnnLinear(torch.autograd.Function):
    """``x @ weight.T`` in fp32; both gradients are oneDNN products too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.size(-1))
        needs_x, needs_weight = ctx.needs_input_grad
        grad_x = _product(flat, weight.t()).view_as(x) if needs_x else None
        grad_weight = _product(flat.t(), x.reshape(-1, x.size(-1)).t()) if needs_weight else None
        return grad_x, grad_weight


class _Bf16Linear(torch.autograd.Function):
    """``x @ weight.T`` as a bf16 product with an fp32 result; so are both gradients. Keeps ``x`` in bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        low = x.bfloat16()
        ctx.save_for_backward(low, weight)
        ctx.dtype = x.dtype
        return (low @ weight.bfloat16().t()).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        flat = grad.reshape(-1, grad.size(-1)).bfloat16()
        needs_x, needs_weight = ctx.needs_input_grad
        grad_x = (flat @ weight.bfloat16()).to(ctx.dtype).view(x.shape) if needs_x else None
        grad_weight = (flat.t() @ x.reshape(-1, x.size(-1))).to(weight.dtype) if needs_weight else None
        return grad_x, grad_weight


class CpuLinear(nn.Linear):
    """`torch.nn.Linear` with the CPU products above; on other devices and in other dtypes it is the plain layer."""

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in) -> (..., out)``; fp32 out of fp32 parameters, under autocast too."""
        if x.device.type != "cpu" or self.weight.dtype != torch.float32:
            return super().forward(x)
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
            return self._low(x)
        if x.dtype != torch.float32 or not prefers_onednn():
            return super().forward(x)
        product = _OneDnnLinear.apply if torch.is_grad_enabled() else _product
        out: Tensor = product(x, self.weight)
        # Outside the product, so that the bits are the same with and without gradients.
        return out if self.bias is None else out + self.bias

    def _low(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            out: Tensor = _Bf16Linear.apply(x, self.weight)  # type: ignore[no-untyped-call]
            return out if self.bias is None else out + self.bias


def sdpa_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The attention that transformers calls "sdpa", always in fp32 on a CPU (the result has the query's dtype)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)
    with torch.autocast("cpu", enabled=False):
        out, weights = sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)
        return out.to(query.dtype), weights


def _register_attention() -> None:
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    AttentionInterface.register(SDPA_NAME, sdpa_attention)
    AttentionMaskInterface.register(SDPA_NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def tune_for_cpu(model: Any) -> int:
    """Give a transformers model the CPU kernels above, in place; parameters and their names stay.

    Args:
        model: A transformers model; attention is changed only where it is "sdpa".

    Returns:
        How many linear layers were changed.
    """
    config = getattr(model, "config", None)
    if config is not None and config._attn_implementation == "sdpa":
        _register_attention()
        model.set_attn_implementation(SDPA_NAME)
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.__class__ = CpuLinear
    return len(layers)
