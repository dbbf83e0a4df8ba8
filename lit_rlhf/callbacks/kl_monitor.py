"""Distance of the policy from the reference."""

from __future__ import annotations

from collections.abc import Mapping

from torchmetrics import Metric

from lit_rlhf.callbacks.hooks import ExperienceLike
from lit_rlhf.callbacks.monitor import RolloutMonitor
from lit_rlhf.callbacks.response_metrics import ResponseMean


class KLMonitor(RolloutMonitor):
    r"""KL divergence of the policy from the reference, on the policy's own responses, in nats.

    With :math:`d = \log\pi(y_i) - \log\pi_{ref}(y_i)` per token:

    * ``monitor/kl/k1``: mean of :math:`d` a token; unbiased, may be negative on a batch.
    * ``monitor/kl/k3``: mean of :math:`e^{-d} - 1 + d` a token; never negative, less noisy near zero.
    * ``monitor/kl/sequence``: mean over responses of :math:`\sum_i d_i`, the distance the policy has *travelled*.

    Source: paper section 5.2 and App. B.2; k1 and k3 after Schulman, "Approximating KL divergence".
    """

    name = "kl"

    def build_metrics(self) -> Mapping[str, Metric]:
        """Three means."""
        return {"k1": ResponseMean(), "k3": ResponseMean(), "sequence": ResponseMean()}

    def update(self, metrics: Mapping[str, Metric], experience: ExperienceLike) -> None:
        """Add the rows of ``experience``."""
        mask = experience.response_mask
        drift = (experience.old_logprobs - experience.ref_logprobs).double().masked_fill(~mask, 0.0)
        metrics["k1"].update(drift, mask)
        metrics["k3"].update((-drift).expm1() + drift, mask)
        metrics["sequence"].update(drift.sum(1))
