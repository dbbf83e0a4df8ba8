"""What a run that is resumed is told when something is not as it was; nothing here changes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_rlhf.models.cpu import products


def tell_other_sources(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Say that a model named now is not what is trained: weights come from the checkpoint.

    Args:
        before: What each part was loaded from when the checkpoint was written.
        now: What the module names.
    """
    for name in sorted(before.keys() & now.keys() - {"tokenizer"}):
        if Path(before[name]).expanduser().resolve() != Path(now[name]).expanduser().resolve():
            rank_zero_warn(
                f"The run was started from '{before[name]}' as its {name}, and is resumed with '{now[name]}': its "
                f"weights come from the checkpoint. To train '{now[name]}', start a new run."
            )


def tell_other_precision(before: str | None, now: str) -> None:
    """Say that the resumed run computes in another precision, as `precision: auto` makes it on another machine.

    Args:
        before: Lightning's name of it when the checkpoint was written; None in older checkpoints.
        now: The same of this run.
    """
    if before is not None and before != now:
        rank_zero_warn(
            f"This run was in {before} when the checkpoint was written and goes on in {now}: other rounding, and other "
            f"responses sooner or later. `--trainer.precision={before}` goes on as it was."
        )


def tell_other_products(before: str | None, device: torch.device) -> None:
    """Say that the resumed run is not bit for bit what it would have been: another CPU multiplies otherwise.

    Args:
        before: What multiplied when the checkpoint was written; None on an accelerator, and in older checkpoints.
        device: Where the run goes on.
    """
    now = products(device)
    if before is not None and now is not None and before != now:
        rank_zero_warn(
            f"fp32 products went through {before} when this checkpoint was written and go through {now} here: the "
            f"same numbers up to rounding. LIT_RLHF_CPU_PRODUCTS={before} makes them the same bits."
        )
