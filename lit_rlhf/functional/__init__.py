"""Pure tensor maths: no config, no logging, no I/O. One file an idea."""

from lit_rlhf.functional.advantages import (
    discounted_returns,
    generalized_advantage_estimate,
    group_normalized,
    leave_one_out,
)
from lit_rlhf.functional.diagnostics import (
    LengthStats,
    explained_variance,
    explained_variance_from_sums,
    explained_variance_sums,
    length_stats,
    perplexity,
)
from lit_rlhf.functional.kl import k1, k2, k3
from lit_rlhf.functional.logprobs import chunked_logprobs, entropy, selected_logprobs
from lit_rlhf.functional.losses import (
    RatioSums,
    clipped_policy_loss,
    entropy_loss,
    kl_penalty_policy_loss,
    lm_loss,
    normalized_sum,
    ratio_sums,
    value_loss,
)
from lit_rlhf.functional.masking import (
    masked_mean,
    masked_moments,
    masked_sum,
    masked_var,
    masked_whiten,
)
from lit_rlhf.functional.moments import RunningMoments
from lit_rlhf.functional.preference import accuracy, pairwise_loss
from lit_rlhf.functional.shaping import penalize_missing_eos, shape_scores, token_rewards

__all__ = [
    "LengthStats",
    "RatioSums",
    "RunningMoments",
    "accuracy",
    "chunked_logprobs",
    "clipped_policy_loss",
    "discounted_returns",
    "entropy",
    "entropy_loss",
    "explained_variance",
    "explained_variance_from_sums",
    "explained_variance_sums",
    "generalized_advantage_estimate",
    "group_normalized",
    "k1",
    "k2",
    "k3",
    "kl_penalty_policy_loss",
    "leave_one_out",
    "length_stats",
    "lm_loss",
    "masked_mean",
    "masked_moments",
    "masked_sum",
    "masked_var",
    "masked_whiten",
    "normalized_sum",
    "pairwise_loss",
    "penalize_missing_eos",
    "perplexity",
    "ratio_sums",
    "selected_logprobs",
    "shape_scores",
    "token_rewards",
    "value_loss",
]
