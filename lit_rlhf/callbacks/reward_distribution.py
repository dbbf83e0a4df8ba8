"""The shape of the score distribution, and its histogram per rollout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from lit_rlhf.callbacks.hooks import ExperienceLike, append_to_run, iteration_of
from lit_rlhf.callbacks.loggers import log_histogram
from lit_rlhf.callbacks.monitor import RolloutMonitor
from lit_rlhf.callbacks.response_metrics import ResponseValues
from lit_rlhf.functional.diagnostics import shape_statistics

FILENAME = "reward_histograms.jsonl"


class RewardDistributionMonitor(RolloutMonitor):
    """Logs the shape of the raw scores, and writes their histogram for every rollout.

    * ``rollout/score`` (the mean) and ``rollout/score_{std,skew,kurtosis,upper_tail}``: see
      :func:`~lit_rlhf.functional.diagnostics.shape_statistics`.
    * ``reward_histograms.jsonl`` in the run directory: one line per rollout with ``iteration, step, start, width,
      counts`` and the statistics. Bin k holds scores in ``[start + k width, start + (k + 1) width)``; every ``start``
      is a multiple of ``width``, and ``width`` only ever doubles, so histograms of different rollouts nest.
    * A histogram in TensorBoard, Weights & Biases or MLflow, where such a logger is attached.

    Args:
        max_bins: Bins after which ``width`` doubles.

    Raises:
        ValueError: If ``max_bins`` is under 2.
    """

    def __init__(self, max_bins: int = 120) -> None:
        if max_bins < 2:
            raise ValueError(f"`max_bins` ({max_bins}) must be at least 2.")
        super().__init__()
        self.max_bins = max_bins
        self._width = 0.0
        self._scores = torch.zeros(0)
        self._shape: dict[str, float] = {}

    @property
    def state_key(self) -> str:
        """Of its own for each grid."""
        return self._generate_state_key(max_bins=self.max_bins)

    def build_metrics(self) -> Mapping[str, Metric]:
        """All scores of all ranks."""
        return {"scores": ResponseValues()}

    def inputs(self, experience: ExperienceLike) -> Mapping[str, tuple[Tensor, ...]]:
        """The scores."""
        return {"scores": (experience.scores,)}

    def derive(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """The statistics of the scores of all ranks, which are kept for the histogram."""
        self._scores = values["scores"].cpu()
        self._shape = shape_statistics(self._scores)
        return {"rollout/score" if key == "mean" else f"rollout/score_{key}": x for key, x in self._shape.items()}

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike) -> None:
        """Measure, and write the histogram on rank zero."""
        super().on_rollout_end(trainer, pl_module, experience)
        histogram = self.histogram(self._scores)
        if not trainer.is_global_zero:
            return
        where = {"iteration": iteration_of(trainer, pl_module), "step": trainer.global_step}
        shape = {key: value if math.isfinite(value) else None for key, value in self._shape.items()}
        append_to_run(trainer, FILENAME, [{**where, **histogram, **shape}])
        log_histogram(trainer, "rollout/score", self._scores, trainer.global_step)

    def histogram(self, scores: Tensor) -> dict[str, Any]:
        """Counts on a grid that all rollouts share.

        Args:
            scores: ``(N,)`` float; non-finite ones are skipped.

        Returns:
            ``start`` and ``width`` (float) and ``counts`` (list of int); empty counts where no score is finite.
        """
        kept = scores[scores.isfinite()].double()
        if kept.numel() == 0:
            return {"start": 0.0, "width": self._width, "counts": []}
        low, high = float(kept.min()), float(kept.max())
        if self._width == 0.0:
            # A power of two a quarter of a standard deviation wide; one unit where all scores are equal.
            self._width = 2.0 ** math.floor(math.log2(float(kept.std(correction=0)) / 4)) if high > low else 1.0
        while math.floor(high / self._width) - math.floor(low / self._width) >= self.max_bins:
            self._width *= 2
        first = math.floor(low / self._width)
        index = (kept / self._width).floor().long() - first
        return {"start": first * self._width, "width": self._width, "counts": torch.bincount(index).tolist()}

    def state_dict(self) -> dict[str, Any]:
        """The width of the grid."""
        return {"width": self._width}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume the same grid."""
        self._width = state_dict["width"]
