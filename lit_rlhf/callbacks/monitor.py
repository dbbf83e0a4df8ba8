"""The base of the monitors: measure at the end of a rollout, log at the next training batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import lightning as L
import torch
from torchmetrics import Metric

from lit_rlhf.callbacks.hooks import ExperienceLike


class RolloutMonitor(L.Callback, ABC):
    """Logs ``monitor/<name>/<key>`` once a rollout; the values are equal on all ranks.

    A subclass sets ``name``, names its torchmetrics in ``build_metrics`` and fills them in ``update``. A metric is
    owned by the callback, not by the module, so that ``precision="bf16-true"`` does not cast its state.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = dict(self.build_metrics())
        self._pending: dict[str, float] = {}

    @abstractmethod
    def build_metrics(self) -> Mapping[str, Metric]:
        """The metrics by the key they are logged under."""

    @abstractmethod
    def update(self, metrics: Mapping[str, Metric], experience: ExperienceLike) -> None:
        """Fill ``metrics`` from this rank's rows."""

    def derive(self, values: dict[str, float]) -> dict[str, float]:
        """What to log, given the computed values; override to transform them."""
        return values

    def measure(self, experience: ExperienceLike) -> dict[str, float]:
        """The values of one rollout, over all ranks (a collective: every rank must call).

        Returns:
            Python floats by key.
        """
        self.update(self._metrics, experience)
        values = {key: float(metric.compute()) for key, metric in self._metrics.items()}
        for metric in self._metrics.values():
            metric.reset()
        return self.derive(values)

    def place(self, device: torch.device) -> None:
        """Put the metrics on ``device``: where the collectives run."""
        for metric in self._metrics.values():
            metric.to(device)

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike) -> None:
        """Measure, and keep the values for the next training batch."""
        self.place(pl_module.device)
        self._pending = {f"monitor/{self.name}/{key}": value for key, value in self.measure(experience).items()}

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
