"""The shape of the score distribution, and its histogram a rollout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import Metric

from lit_rlhf.callbacks.hooks import ExperienceLike, iteration_of
from lit_rlhf.callbacks.monitor import RolloutMonitor
from lit_rlhf.callbacks.response_metrics import ResponseValues

FILENAME = "reward_histograms.jsonl"


def shape_statistics(scores: Tensor) -> dict[str, float]:
    r"""Moments and tail of a sample, all free of location, and all but ``std`` free of scale.

    * ``skew`` :math:`m_3 / m_2^{3/2}` and ``kurtosis`` :math:`m_4 / m_2^2 - 3`, of central moments with divisor N.
    * ``upper_tail`` :math:`(U_{5\%} - M) / (M - L_{50\%})`, where U and L are the means of the top 5 % and of the lower
      half and M is the median (after Hogg 1972): how far the best responses lie above the middle, in units of how far
      the lower half lies below. About 2.6 for a normal distribution of any mean and width, larger with a long upper
      tail: the number for Appendix A's "long tail after collapse".

    Args:
        scores: ``(N,)`` float, N >= 1.

    Returns:
        ``mean, std, skew, kurtosis, upper_tail``; the last three are NaN where all scores are equal.
    """
    ordered = scores.double().sort().values
    mean, median = ordered.mean(), ordered.quantile(0.5)
    centered = ordered - mean
    variance = centered.square().mean()
    top = max(1, round(0.05 * len(ordered)))
    above, below = ordered[-top:].mean() - median, median - ordered[: max(1, len(ordered) // 2)].mean()
    values = {
        "mean": mean,
        "std": variance.sqrt(),
        "skew": centered.pow(3).mean() / variance.pow(1.5),
        "kurtosis": centered.pow(4).mean() / variance.square() - 3.0,
        "upper_tail": above / below,
    }
    return {key: float(value) if value.isfinite() else math.nan for key, value in values.items()}


class RewardDistributionMonitor(RolloutMonitor):
    """Logs the shape of the raw scores, and writes their histogram for every rollout.

    * ``monitor/reward_distribution/{mean,std,skew,kurtosis,upper_tail}``: see :func:`shape_statistics`.
    * ``reward_histograms.jsonl`` in the run directory: one line a rollout with ``iteration, step, start, width,
      counts`` and the statistics. Bin k holds scores in ``[start + k width, start + (k + 1) width)``; every ``start``
      is a multiple of ``width``, and ``width`` only ever doubles, so histograms of different rollouts nest.
    * A TensorBoard histogram, where such a logger is attached.

    Args:
        max_bins: Bins after which ``width`` doubles.

    Raises:
        ValueError: If ``max_bins`` is under 2.
    """

    name = "reward_distribution"

    def __init__(self, max_bins: int = 120) -> None:
        if max_bins < 2:
            raise ValueError(f"`max_bins` ({max_bins}) must be at least 2.")
        super().__init__()
        self.max_bins = max_bins
        self._width = 0.0
        self._scores = torch.zeros(0)

    def build_metrics(self) -> Mapping[str, Metric]:
        """All scores of all ranks."""
        return {"scores": ResponseValues()}

    def update(self, metrics: Mapping[str, Metric], experience: ExperienceLike) -> None:
        """Add the rows of ``experience``."""
        metrics["scores"].update(experience.scores)

    def measure(self, experience: ExperienceLike) -> dict[str, float]:
        """The statistics of the scores of all ranks."""
        self.update(self._metrics, experience)
        self._scores = self._metrics["scores"].compute().cpu()
        self._metrics["scores"].reset()
        return shape_statistics(self._scores)

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike) -> None:
        """Measure, and write the histogram on rank zero."""
        super().on_rollout_end(trainer, pl_module, experience)
        histogram = self.histogram(self._scores)
        if not trainer.is_global_zero:
            return
        where = {"iteration": iteration_of(trainer, pl_module), "step": trainer.global_step}
        shape = {k.rsplit("/", 1)[1]: v if math.isfinite(v) else None for k, v in self._pending.items()}
        path = Path(trainer.default_root_dir) / FILENAME
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**where, **histogram, **shape}) + "\n")
        for logger in trainer.loggers:
            add = getattr(getattr(logger, "experiment", None), "add_histogram", None)
            if add is not None:
                add("monitor/reward_distribution", self._scores.numpy(), trainer.global_step)

    def histogram(self, scores: Tensor) -> dict[str, Any]:
        """Counts on a grid that all rollouts share.

        Args:
            scores: ``(N,)`` float; non-finite ones are left out.

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
        """Go on with the same grid."""
        self._width = state_dict["width"]
