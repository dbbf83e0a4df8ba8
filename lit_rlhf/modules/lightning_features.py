"""Flags and callbacks of Lightning's that cannot work here, refused in one line (docs/lightning.md has all of them)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

NO_SUCH_TUNING = "there is no one `lr` or batch size to search: set `model.optimizer` and the data's sizes"
REFUSED_CALLBACKS = {
    "BackboneFinetuning": "there is no backbone to unfreeze: `CriticWarmup` trains the critic first",
    "BatchSizeFinder": NO_SUCH_TUNING,
    "GradientAccumulationScheduler": "a minibatch is cut into passes by itself (`micro_batch_tokens`)",
    "LearningRateFinder": NO_SUCH_TUNING,
    "ModelPruning": "pruned weights are neither exported nor the same on all ranks",
    "StochasticWeightAveraging": "it copies the module before its models are loaded, and would average nothing: use "
    "`EMAWeightAveraging`",
    "SpikeDetection": "`training_step` returns no loss to watch: `on_non_finite` stops or skips bad updates",
}
"""By name of the class."""
REFUSED_FLAGS = {
    "accumulate_grad_batches": "a minibatch is cut into passes by itself (`micro_batch_tokens`): raise "
    "`data.minibatch_size` or `data.batch_size`",
    "gradient_clip_val": "gradients are clipped by `model.optimizer.max_grad_norm`",
    "gradient_clip_algorithm": "gradients are clipped by norm, `model.optimizer.max_grad_norm`",
    "barebones": "switch off what is not wanted: `trainer.logger`, `trainer.enable_checkpointing`",
    "overfit_batches": "every epoch has other batches; give a small `data.train` to learn by heart",
}
"""Flags whose values other than the first are refused, and what to do instead."""
REFUSED_STRATEGIES = ("fsdp", "modelparallel", "model_parallel", "deepspeed_stage_3")
"""Beginnings of their names: of the class, or in a config."""
_IDLE: dict[str, tuple[Any, ...]] = {"accumulate_grad_batches": (1,)}


def refuse_flags(config: Mapping[str, Any]) -> None:
    """Refuse flags that modules of this library cannot follow.

    Args:
        config: The trainer's options.

    Raises:
        ValueError: Names the flag, its value and what to use.
    """
    for name, instead in REFUSED_FLAGS.items():
        value = config.get(name)
        if value and value not in _IDLE.get(name, ()):
            raise ValueError(f"`trainer.{name}` ({value}) is not supported: {instead}.")
    strategy = config.get("strategy")
    named = strategy.get("class_path") if isinstance(strategy, Mapping) else strategy
    _refuse_strategy(named.rpartition(".")[2] if isinstance(named, str) else named)


def _refuse_strategy(strategy: Any) -> None:
    """By its name in a config, or by the names of Lightning's classes that it is made of."""
    kinds = [kind for kind in type(strategy).__mro__ if kind.__module__.startswith(("lightning", "pytorch_lightning"))]
    names = [strategy] if isinstance(strategy, str) else [kind.__name__ for kind in kinds]
    name = next((name for name in names if name.lower().startswith(REFUSED_STRATEGIES)), None)
    stage = getattr(strategy, "config", None)
    if isinstance(stage, dict) and stage.get("zero_optimization", {}).get("stage") == 3:
        name = "DeepSpeed stage 3"
    if name is not None:
        raise ValueError(
            f"`trainer.strategy` ({name}) is not supported: use `ddp`, or `lit_deepspeed_stage_2` (docs/scaling.md)."
        )


def check_trainer(trainer: L.Trainer) -> None:
    """Refuse callbacks, precisions and flags that cannot work; called before anything is loaded.

    Raises:
        ValueError: Names what cannot work and what to use.
    """
    if str(trainer.precision) == "64-true":
        raise ValueError("`precision` (64-true) is not supported: log-probabilities and losses are fp32. Use 32-true.")
    if getattr(trainer, "overfit_batches", 0):
        refuse_flags({"overfit_batches": trainer.overfit_batches})  # type: ignore[attr-defined]
    _refuse_strategy(trainer.strategy)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        _refuse_folders(callback)
        names = [kind.__name__ for kind in type(callback).__mro__]
        instead = next((REFUSED_CALLBACKS[name] for name in names if name in REFUSED_CALLBACKS), None)
        if instead is not None:
            raise ValueError(f"`{type(callback).__name__}` is not supported: {instead}.")


def _refuse_folders(callback: L.Callback) -> None:
    """`{val/score}` in a file's name becomes `val/score=0.1`: a folder, in which nobody looks for checkpoints."""
    filename = getattr(callback, "filename", None)
    if isinstance(callback, ModelCheckpoint) and filename and callback.auto_insert_metric_name:
        names = re.findall(r"\{([^}:]*/[^}:]*)", filename)
        if names:
            raise ValueError(
                f"`filename` ('{filename}') of {type(callback).__name__} would make a folder of `{names[0]}`: set "
                "`auto_insert_metric_name: false`, which leaves the name out."
            )
