"""Times the pieces that choices in the library rest on: products, attention, draws, the optimizer."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM

from benchmarks.shapes import PRESETS, Clock, llama_config, versions
from lit_rlhf.models.cpu.attention import rows_packed, sdpa_attention
from lit_rlhf.models.cpu.kernels import CpuLinear, prefers_onednn
from lit_rlhf.rollout.sampling import inverse_cdf


def microseconds(clock: Clock, function: Callable[[], Any], budget: float = 0.15) -> float:
    """Time of one call after two to warm up, averaged over about ``budget`` seconds."""
    function()
    start = clock.now()
    function()
    calls = max(3, int(budget / max(clock.now() - start, 1e-6)))
    start = clock.now()
    for _ in range(calls):
        function()
    return round((clock.now() - start) / calls * 1e6, 1)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All of them at the preset's sizes, in microseconds."""
    torch.set_num_threads(options.threads)
    clock = Clock(options.clock)
    return {
        "versions": versions(),
        "onednn_fp32": prefers_onednn(),
        "linear": linear(options, clock),
        "attention": attention(options, clock),
        "attention_of_a_row": attention_of_a_row(options, clock),
        "draw": draw(options, clock),
        "adamw": adamw(options, clock),
    }


def linear(options: argparse.Namespace, clock: Clock) -> dict[str, float]:
    """Forward and backward of the widest layer over one micro-batch, and forward over 32 rows of a decode step."""
    hidden, _, _, intermediate, _ = PRESETS[options.preset]
    out = {}
    for name, layer in (("torch", nn.Linear), ("ours", CpuLinear)):
        module = layer(hidden, intermediate, bias=False)
        for rows in (32, options.micro_batch_tokens):
            x = torch.randn(rows, hidden, requires_grad=rows > 32)
            for precision in ("fp32", "bf16"):

                def step(module: nn.Module = module, x: Tensor = x, low: bool = precision == "bf16") -> None:  # noqa: FBT001
                    with (
                        torch.autocast("cpu", dtype=torch.bfloat16, enabled=low),
                        torch.set_grad_enabled(x.requires_grad),
                    ):
                        result = module(x)
                    if x.requires_grad:
                        result.sum().backward()

                out[f"{name}_{precision}_{rows}"] = microseconds(clock, step)
    return out


def attention(options: argparse.Namespace, clock: Clock) -> dict[str, float]:
    """Causal attention over 8 rows of 128 tokens, forward and backward, and one decode step of 32 rows over 160."""
    hidden, _, heads, _, _ = PRESETS[options.preset]
    out = {}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        q, k, v = (torch.randn(8, heads, 128, hidden // heads, dtype=dtype, requires_grad=True) for _ in range(3))
        out[f"train_{name}"] = microseconds(
            clock, partial(_and_back, partial(scaled_dot_product_attention, q, k, v, is_causal=True))
        )
        q, k, v = (torch.randn(32, heads, n, hidden // heads, dtype=dtype) for n in (1, 160, 160))
        out[f"decode_{name}"] = microseconds(clock, partial(scaled_dot_product_attention, q, k, v))
    return out


def attention_of_a_row(options: argparse.Namespace, clock: Clock) -> dict[str, float]:
    """Causal attention of three packed rows, by PyTorch, in parts, and of the last layer's last 32 queries.

    Microseconds a row, forward alone and with backward; the best of five turns, so that other work on the machine
    counts less.
    """
    hidden, _, heads, _, _ = PRESETS[options.preset]
    out: dict[str, float] = {}
    for length in (64, 104, 192, 512, 1024):
        q, k, v = (torch.randn(1, 3 * length, heads, hidden // heads).transpose(1, 2) for _ in range(3))
        qkv = [x.requires_grad_() for x in (q, k, v)]
        last = torch.cat([torch.arange(length - 32, length) + i * length for i in range(3)])
        ways = {
            "torch": partial(_attend_apart, qkv, length),
            "parts": partial(_attend_packed, _Asked(None), qkv, length),
            "last_32": partial(_attend_packed, _Asked(last), qkv, length),
        }
        for _ in range(5):
            for name, attend in ways.items():
                with torch.no_grad():
                    forward = microseconds(clock, attend, budget=0.03)
                both = microseconds(clock, partial(_and_back, attend), budget=0.06)
                for kind, found in (("forward", forward), ("train", both)):
                    key = f"{kind}_{name}_{length}"
                    out[key] = min(out.get(key, math.inf), round(found / 3, 1))
    return out


class _Asked(nn.Module):
    """A layer's attention, as far as it is asked about."""

    def __init__(self, asked: Tensor | None) -> None:
        super().__init__()
        self.asked = asked


def _attend_apart(qkv: list[Tensor], length: int) -> Tensor:
    rows = zip(*(torch.split(x, length, dim=2) for x in qkv), strict=True)
    return torch.cat([scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2) for q, k, v in rows], dim=1)


def _attend_packed(layer: nn.Module, qkv: list[Tensor], length: int) -> Tensor:
    query, key, value = qkv
    with rows_packed([length] * 3):
        attended: Tensor = sdpa_attention(layer, query, key, value, None)[0]
    return attended


def _and_back(attend: Callable[[], Tensor]) -> None:
    torch.autograd.backward(attend().sum())


def draw(options: argparse.Namespace, clock: Clock) -> dict[str, float]:
    """One token for each of 64 rows."""
    weights = torch.randn(64, PRESETS[options.preset][-1]).softmax(-1)
    uniforms = torch.rand(64, dtype=torch.float64)
    return {
        "multinomial": microseconds(clock, lambda: torch.multinomial(weights, 1)),
        "inverse_cdf": microseconds(clock, lambda: inverse_cdf(weights, uniforms)),
    }


def adamw(options: argparse.Namespace, clock: Clock) -> dict[str, float]:
    """A step over the weights of a model, by PyTorch's default on a CPU and by the fused kernel."""
    out = {}
    for name, fused in (("default", None), ("fused", True)):
        model = AutoModelForCausalLM.from_config(llama_config(options.preset, positions=64))
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=fused)
        out[name] = microseconds(clock, optimizer.step)
    return out
