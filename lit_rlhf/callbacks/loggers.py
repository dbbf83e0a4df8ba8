"""Texts and histograms to any logger that can show them: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import lightning as L
from torch import Tensor


def log_texts(trainer: L.Trainer, name: str, texts: Sequence[tuple[int, str]], step: int) -> None:
    """Log markdown texts, each under its number; loggers that hold numbers alone get nothing. Call it on rank 0.

    Args:
        trainer: Whose loggers.
        name: ``samples/fixed``, ...
        texts: Number and text.
        step: Global step.
    """
    for logger in trainer.loggers:
        kind, experiment = _kind(logger), getattr(logger, "experiment", None)
        if not texts or experiment is None:
            continue
        if kind == "WandbLogger":
            rows = [[step, number, text] for number, text in texts]
            logger.log_text(key=name, columns=["step", "index", "text"], data=rows)  # type: ignore[attr-defined]
        elif kind == "MLFlowLogger":
            whole = "\n\n---\n\n".join(f"## {number}\n\n{text}" for number, text in texts)
            experiment.log_text(logger.run_id, whole, f"{name}/step{step:06d}.md")  # type: ignore[attr-defined]
        elif hasattr(experiment, "add_text"):
            for number, text in texts:
                experiment.add_text(f"{name}/{number}", text, step)


def log_histogram(trainer: L.Trainer, name: str, values: Tensor, step: int) -> None:
    """Log the distribution of ``values`` ``(N,)``, finite ones; arguments as :func:`log_texts`."""
    finite = values[values.isfinite()].float().cpu().numpy()
    for logger in trainer.loggers:
        kind, experiment = _kind(logger), getattr(logger, "experiment", None)
        if experiment is None or not len(finite):
            continue
        if kind == "WandbLogger":
            histogram = import_module("wandb").Histogram(finite)
            experiment.log({f"{name}_histogram": histogram, "trainer/global_step": step})
        elif kind == "MLFlowLogger":
            values_of = {"step": step, "values": finite.tolist()}
            experiment.log_dict(logger.run_id, values_of, f"{name}/step{step:06d}.json")  # type: ignore[attr-defined]
        elif hasattr(experiment, "add_histogram"):
            experiment.add_histogram(name, finite, step)


def _kind(logger: Any) -> str:
    """Lightning's class that a logger is of, by name: its module needs a package that may not be installed."""
    names = [kind.__name__ for kind in type(logger).__mro__]
    return next((name for name in ("WandbLogger", "MLFlowLogger") if name in names), "")
