"""Setting a running trainer back to an older checkpoint's weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch


def checkpoint_before(
    trainer: L.Trainer, step: int, *, folder: str | None = None, spoiled: Sequence[tuple[int, int]] = ()
) -> Path | None:
    """The newest checkpoint taken before global step ``step``; the same answer on all ranks.

    Args:
        trainer: Its checkpoint callbacks name the folders to look in.
        step: Global step.
        folder: Look here instead.
        spoiled: Step ranges, ends included, of earlier collapses: checkpoints from within are passed over.

    Returns:
        A checkpoint file, or DeepSpeed's checkpoint folder; None when there is none.
    """
    folders = [folder] if folder is not None else [getattr(c, "dirpath", None) for c in trainer.checkpoint_callbacks]
    found: dict[int, Path] = {}
    for path in sorted({p for f in folders if f is not None for p in Path(f).glob("*.ckpt") if not p.is_symlink()}):
        taken = _step_of(path) if trainer.is_global_zero else None
        if taken is not None and taken < step and not any(first <= taken <= last for first, last in spoiled):
            found[taken] = path
    newest = found[max(found)] if found else None
    answer: Path | None = trainer.strategy.broadcast(newest)
    return answer


def restore(trainer: L.Trainer, pl_module: L.LightningModule, path: Path) -> None:
    """Load weights, optimizer state and the module's own checkpoint state; loops and schedulers are left as they are.

    Args:
        trainer: In ``fit``, between two updates; all ranks call.
        pl_module: The module in training.
        path: What :func:`checkpoint_before` gave.
    """
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in trainer.optimizers]
    checkpoint = trainer.strategy.load_checkpoint(path, weights_only=True)
    iteration = getattr(pl_module, "iteration", None)
    pl_module.on_load_checkpoint(checkpoint)
    trainer.strategy.load_model_state_dict(checkpoint, strict=pl_module.strict_loading)
    if trainer.strategy.lightning_restore_optimizer:
        trainer.strategy.load_optimizer_state_dict(checkpoint)
    for optimizer, kept in zip(trainer.optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, kept, strict=True):
            group["lr"] = rate
    if "iteration" in vars(pl_module):
        pl_module.iteration = iteration  # type: ignore[assignment]


def _step_of(path: Path) -> int | None:
    """Global step of a checkpoint, from its name (Lightning's default pattern has it) or, for a file, from within."""
    named = re.search(r"step=(\d+)", path.name)
    if named:
        return int(named[1])
    if path.is_dir():
        return None
    return int(torch.load(path, map_location="cpu", mmap=True, weights_only=True)["global_step"])
