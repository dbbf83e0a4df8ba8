"""What a trainer's precision means for weights."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy

_BF16 = ("avx512_bf16", "amx_bf16")  # by name of torch.cpu.get_capabilities
_LOW = {"bf16": torch.bfloat16, "16": torch.float16}


def weight_dtype(trainer: L.Trainer) -> torch.dtype:
    """The dtype that trained weights are kept in on the device.

    Mixed precision keeps fp32 ones and casts as it computes; `...-true` keeps low ones, and so does DeepSpeed whatever
    the name, beside fp32 masters of its own.
    """
    name, _, kind = str(trainer.precision).partition("-")
    low = kind == "true" or isinstance(trainer.strategy, DeepSpeedStrategy)
    return _LOW.get(name, torch.float32) if low else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 itself; True where torch does not tell."""
    told = _told_of_the_cpu()
    if told.get("architecture") != "x86_64" or _BF16[0] not in told:
        return True
    return any(told.get(name) for name in _BF16)


def cpu_says_bf16() -> bool:
    """The same, but False where torch does not tell: for a choice that costs little if it is wrong that way."""
    return any(_told_of_the_cpu().get(name) for name in _BF16)


def _told_of_the_cpu() -> dict[str, Any]:
    ask = getattr(torch.cpu, "get_capabilities", None)  # from torch 2.11 on
    return ask() if ask is not None else {}
