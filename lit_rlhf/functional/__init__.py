"""Pure maths, one file per idea: no config, no logging, no I/O. Every formula that a module or a callback uses is here.

Conventions of the whole room: B responses of at most T tokens; a mask is bool, True = keep, and has its column's shape;
results are fp32 (fp64 stays fp64) and zero outside the mask; log-probabilities, entropies and KL are in nats. Each
module's docstring says the rest once, its functions only what is their own.
"""

from lit_rlhf.functional.advantages import (
    discounted_returns,
    generalized_advantage_estimate,
    group_normalized,
    leave_one_out,
)
from lit_rlhf.functional.diagnostics import (
    explained_variance_from_sums,
    explained_variance_sums,
    perplexity,
    shape_statistics,
)
from lit_rlhf.functional.kl import k1, k3, log_ratio
from lit_rlhf.functional.logprobs import chunked_logprobs
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
from lit_rlhf.functional.masking import keep, masked_moments, masked_whiten
from lit_rlhf.functional.moments import RunningMoments
from lit_rlhf.functional.ngrams import ngram_hashes, prefix_hashes, response_ngrams, row_hashes, variety
from lit_rlhf.functional.preference import accuracy, pairwise_loss
from lit_rlhf.functional.sampler import effective_share, largest_gap, sampler_sums, truncated_weights
from lit_rlhf.functional.shaping import penalize_missing_eos, shape_scores, token_rewards

__all__ = [
    "RatioSums",
    "RunningMoments",
    "accuracy",
    "chunked_logprobs",
    "clipped_policy_loss",
    "discounted_returns",
    "effective_share",
    "entropy_loss",
    "explained_variance_from_sums",
    "explained_variance_sums",
    "generalized_advantage_estimate",
    "group_normalized",
    "k1",
    "k3",
    "keep",
    "kl_penalty_policy_loss",
    "largest_gap",
    "leave_one_out",
    "lm_loss",
    "log_ratio",
    "masked_moments",
    "masked_whiten",
    "ngram_hashes",
    "normalized_sum",
    "pairwise_loss",
    "penalize_missing_eos",
    "perplexity",
    "prefix_hashes",
    "ratio_sums",
    "response_ngrams",
    "row_hashes",
    "sampler_sums",
    "shape_scores",
    "shape_statistics",
    "token_rewards",
    "truncated_weights",
    "value_loss",
    "variety",
]
