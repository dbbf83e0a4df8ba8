"""What a trainer's precision means for weights."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy

_LOW = {"bf16": torch.bfloat16, "16": torch.float16}


def weight_dtype(trainer: L.Trainer) -> torch.dtype:
    """The dtype that trained weights are kept in on the device.

    Mixed precision keeps fp32 ones and casts as it computes; `...-true` keeps low ones, and so does DeepSpeed whatever
    the name, beside fp32 masters of its own.
    """
    name, _, kind = str(trainer.precision).partition("-")
    low = kind == "true" or isinstance(trainer.strategy, DeepSpeedStrategy)
    return _LOW.get(name, torch.float32) if low else torch.float32
