"""The base of the monitors: measure at the end of a rollout, log at the next training batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from lit_rlhf.callbacks.hooks import ExperienceLike, RolloutCallback, known_metrics


class RolloutMonitor(RolloutCallback, ABC):
    """Logs numbers about each rollout under ``rollout/...``, once per rollout; they are equal on all ranks.

    A name that the module logs itself (its ``rollout_metrics``, see :mod:`~lit_rlhf.callbacks.hooks`) is neither
    computed nor logged again.

    A subclass names its torchmetrics in ``build_metrics`` and what each is fed in ``inputs``; ``derive`` makes the
    logged values of the computed ones. A metric is owned by the callback, not by the module, so that
    ``precision="bf16-true"`` does not cast its state.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = dict(self.build_metrics())
        self._pending: dict[str, float] = {}

    @abstractmethod
    def build_metrics(self) -> Mapping[str, Metric]:
        """The metrics, each under the name it is logged as; one that stands for several names has a key of its own."""

    @abstractmethod
    def inputs(self, experience: ExperienceLike) -> Mapping[str, tuple[Tensor, ...]]:
        """Arguments of each metric's ``update``, made of this rank's rows; a metric without is not computed."""

    def derive(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """What to log, given what the metrics computed; override to transform it."""
        return {name: float(value) for name, value in values.items()}

    def measure(self, experience: ExperienceLike, known: Collection[str] = ()) -> dict[str, float]:
        """The values of one rollout, over all ranks (a collective: every rank must call).

        Args:
            experience: This rank's rows.
            known: Names to skip, the same on all ranks.

        Returns:
            Python floats by name.
        """
        wanted = {name: metric for name, metric in self._metrics.items() if name not in known}
        if not wanted:
            return {}
        computed = {}
        for name, arguments in self.inputs(experience).items():
            if name in wanted:
                wanted[name].update(*arguments)
                computed[name] = wanted[name].compute()
                wanted[name].reset()
        return {name: value for name, value in self.derive(computed).items() if name not in known}

    def place(self, device: torch.device) -> None:
        """Put the metrics on ``device``: where the collectives run."""
        for metric in self._metrics.values():
            metric.to(device)

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike) -> None:
        """Measure, and keep the values for the next training batch."""
        self.place(pl_module.device)
        self._pending = self.measure(experience, known_metrics(pl_module))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log what the rollout before this batch gave."""
        self._flush(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log what a rollout *inside* this batch gave, for modules that sample in ``training_step``."""
        self._flush(pl_module)

    def _flush(self, pl_module: L.LightningModule) -> None:
        if self._pending:
            pl_module.log_dict(self._pending, batch_size=1)
            self._pending = {}
