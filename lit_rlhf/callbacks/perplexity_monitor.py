"""How sure the policy is of what it says."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torchmetrics import Metric

from lit_rlhf.callbacks.hooks import ExperienceLike
from lit_rlhf.callbacks.monitor import RolloutMonitor
from lit_rlhf.callbacks.response_metrics import ResponseMean
from lit_rlhf.functional.diagnostics import perplexity


class PerplexityMonitor(RolloutMonitor):
    """Perplexity of the responses: :func:`~lit_rlhf.functional.diagnostics.perplexity` of one mean over all tokens.

    * ``rollout/perplexity``: under the policy; it falls towards 1 as the policy settles on a pattern.
    * ``rollout/ref_perplexity``: under the reference, where there is one; it rises as the text leaves its ground.

    Source: paper section 5.2.
    """

    def build_metrics(self) -> Mapping[str, Metric]:
        """Two mean negative log-likelihoods."""
        return {"rollout/perplexity": ResponseMean(), "rollout/ref_perplexity": ResponseMean()}

    def inputs(self, experience: ExperienceLike) -> Mapping[str, tuple[Tensor, ...]]:
        """Negative log-probabilities."""
        mask, ref_logprobs = experience.response_mask, experience.ref_logprobs
        policy = {"rollout/perplexity": (-experience.old_logprobs, mask)}
        return policy if ref_logprobs is None else {**policy, "rollout/ref_perplexity": (-ref_logprobs, mask)}

    def derive(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """From mean negative log-likelihoods to perplexities."""
        return {name: perplexity(float(nll)) for name, nll in values.items()}
