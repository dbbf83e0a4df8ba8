"""How sure the policy is of what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torchmetrics import Metric

from lit_rlhf.callbacks.hooks import ExperienceLike
from lit_rlhf.callbacks.monitor import RolloutMonitor
from lit_rlhf.callbacks.response_metrics import ResponseMean


class PerplexityMonitor(RolloutMonitor):
    r"""Perplexity of the responses, :math:`\exp(-\sum_i \log p(y_i) / N)` over all N response tokens of the rollout.

    * ``monitor/perplexity/policy``: under the policy; it falls towards 1 as the policy settles on a pattern.
    * ``monitor/perplexity/reference``: under the reference; it rises as the text leaves the reference's ground.

    Source: paper section 5.2. The released code divides the NLL by a token count twice, so that its axis runs from
    1.00 to 1.03; this is the usual definition.
    """

    name = "perplexity"

    def build_metrics(self) -> Mapping[str, Metric]:
        """Two mean negative log-likelihoods."""
        return {"policy": ResponseMean(), "reference": ResponseMean()}

    def update(self, metrics: Mapping[str, Metric], experience: ExperienceLike) -> None:
        """Add the rows of ``experience``."""
        metrics["policy"].update(-experience.old_logprobs, experience.response_mask)
        metrics["reference"].update(-experience.ref_logprobs, experience.response_mask)

    def derive(self, values: dict[str, float]) -> dict[str, float]:
        """Exponentials; infinity where the mean NLL is above 700 nats, which floats cannot hold."""
        return {key: math.exp(nll) if not nll > 700 else math.inf for key, nll in values.items()}
