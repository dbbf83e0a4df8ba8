"""How long the responses are."""

from __future__ import annotations

from collections.abc import Mapping

from torchmetrics import Metric

from lit_rlhf.callbacks.hooks import ExperienceLike
from lit_rlhf.callbacks.monitor import RolloutMonitor
from lit_rlhf.callbacks.response_metrics import ResponseMean, ResponseValues


class ResponseLengthMonitor(RolloutMonitor):
    """Tokens a response, the end-of-sequence token counted.

    * ``monitor/length/mean``, ``monitor/length/p90``: mean and 90th percentile over the responses of all ranks.
    * ``monitor/length/cut``: share of responses that the length limit cut; only if the experience has ``ended``.
    """

    name = "length"

    def build_metrics(self) -> Mapping[str, Metric]:
        """All lengths, and the share that was cut."""
        return {"lengths": ResponseValues(), "cut": ResponseMean()}

    def update(self, metrics: Mapping[str, Metric], experience: ExperienceLike) -> None:
        """Add the rows of ``experience``."""
        metrics["lengths"].update(experience.response_mask.sum(1))
        ended = getattr(experience, "ended", None)
        if ended is not None:
            metrics["cut"].update((~ended).double())

    def measure(self, experience: ExperienceLike) -> dict[str, float]:
        """Mean, 90th percentile, share cut."""
        self.update(self._metrics, experience)
        lengths, cut = self._metrics["lengths"].compute(), float(self._metrics["cut"].compute())
        for metric in self._metrics.values():
            metric.reset()
        values = {"mean": float(lengths.double().mean()), "p90": float(lengths.quantile(0.9))}
        return values if cut != cut else {**values, "cut": cut}
