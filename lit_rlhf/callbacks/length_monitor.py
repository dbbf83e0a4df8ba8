"""How long the responses are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torchmetrics import Metric

from lit_rlhf.callbacks.hooks import ExperienceLike
from lit_rlhf.callbacks.monitor import RolloutMonitor
from lit_rlhf.callbacks.response_metrics import ResponseMean, ResponseValues

CUT = "rollout/cut_rate"


class ResponseLengthMonitor(RolloutMonitor):
    """Tokens per response, the end-of-sequence token counted.

    * ``rollout/response_length``, ``rollout/response_length_p90``: mean and 90th percentile over all responses.
    * ``rollout/cut_rate``: share of responses that the length limit cut; only if the experience has ``ended``.
    """

    def build_metrics(self) -> Mapping[str, Metric]:
        """All lengths, and the share that was cut."""
        return {"lengths": ResponseValues(), CUT: ResponseMean()}

    def inputs(self, experience: ExperienceLike) -> Mapping[str, tuple[Tensor, ...]]:
        """Lengths, and who was cut."""
        lengths = {"lengths": (experience.response_mask.sum(1),)}
        ended: Tensor | None = getattr(experience, "ended", None)
        return lengths if ended is None else {**lengths, CUT: (~ended,)}

    def derive(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean and 90th percentile of the lengths; the share as it is."""
        lengths = values["lengths"].double().cpu()  # one copy, then no further wait for the device
        mean, p90 = float(lengths.mean()), float(lengths.quantile(0.9))
        named = {"rollout/response_length": mean, "rollout/response_length_p90": p90}
        return {**named, CUT: float(values[CUT])} if CUT in values else named
