"""Distance of the policy from the reference."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torchmetrics import Metric

from lit_rlhf.callbacks.hooks import ExperienceLike
from lit_rlhf.callbacks.monitor import RolloutMonitor
from lit_rlhf.callbacks.response_metrics import ResponseMean
from lit_rlhf.functional.kl import k1, k3
from lit_rlhf.functional.masking import keep


class KLMonitor(RolloutMonitor):
    """KL divergence of the policy from the reference, on the policy's own responses, in nats.

    With ``d = log π(y) − log π_ref(y)`` per token, and the estimators of :mod:`~lit_rlhf.functional.kl`:

    * ``rollout/kl``: mean of k1 per token; unbiased, may be negative on a batch.
    * ``rollout/kl_k3``: mean of k3 per token; never negative, less noisy near zero.
    * ``rollout/kl_sequence``: mean over responses of Σ d, the distance the policy has *travelled*.

    Logs nothing where there is no reference. Source: paper section 5.2 and App. B.2.
    """

    def build_metrics(self) -> Mapping[str, Metric]:
        """Three means."""
        return {name: ResponseMean() for name in ("rollout/kl", "rollout/kl_k3", "rollout/kl_sequence")}

    def inputs(self, experience: ExperienceLike) -> Mapping[str, tuple[Tensor, ...]]:
        """Both estimators at every token, and their sum over each response."""
        if experience.ref_logprobs is None:
            return {}
        mask = experience.response_mask
        logprobs, ref_logprobs = keep(experience.old_logprobs, mask), keep(experience.ref_logprobs, mask)
        drift = k1(logprobs, ref_logprobs)
        return {
            "rollout/kl": (drift, mask),
            "rollout/kl_k3": (k3(logprobs, ref_logprobs), mask),
            "rollout/kl_sequence": (drift.double().sum(1),),
        }
