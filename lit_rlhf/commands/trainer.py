"""Lightning's trainer, with a precision that the machine may choose."""

from __future__ import annotations

import sys
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.utilities import rank_zero_only

from lit_rlhf.strategies.precision import cpu_says_bf16


class MachineTrainer(L.Trainer):
    """`lightning.Trainer` of the command line: `precision: auto` is `bf16-mixed` where the device multiplies bf16.

    Args:
        precision: As Lightning's, or `auto`: `bf16-mixed` on a GPU or an x86 CPU that has instructions for it (which
            torch tells of from 2.11 on), else `32-true`. Which it is, is said.
        accelerator: As Lightning's.
        kwargs: All other options of Lightning's trainer.
    """

    def __init__(
        self, *, precision: _PRECISION_INPUT | Literal["auto"] | None = None, accelerator: Any = "auto", **kwargs: Any
    ) -> None:
        if precision == "auto":
            precision = precision_here(accelerator)
            _say(f"`trainer.precision: auto` is {precision} on this machine")
        super().__init__(precision=precision, accelerator=accelerator, **kwargs)


@rank_zero_only
def _say(line: str) -> None:
    sys.stderr.write(f"lit-rlhf: {line}\n")  # Lightning's own information is silenced


def precision_here(accelerator: Any) -> Literal["bf16-mixed", "32-true"]:
    """What `precision: auto` is on the device that an ``accelerator`` of Lightning's means here."""
    asked = isinstance(accelerator, CUDAAccelerator) or accelerator in ("auto", "gpu", "cuda")
    on_gpu = asked and torch.cuda.is_available()
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_says_bf16()
    return "bf16-mixed" if has_bf16 else "32-true"
