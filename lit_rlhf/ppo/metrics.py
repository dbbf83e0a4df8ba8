"""PPO's own numbers, reduced over ranks before they are divided: definitions in docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lit_rlhf.distributed import all_gather_object, all_reduce_max, all_reduce_sum
from lit_rlhf.functional.diagnostics import explained_variance_from_sums, explained_variance_sums, perplexity
from lit_rlhf.functional.kl import k1, k3
from lit_rlhf.functional.losses import ratio_sums
from lit_rlhf.functional.masking import keep
from lit_rlhf.functional.moments import RunningMoments
from lit_rlhf.functional.sampler import effective_share, largest_gap, sampler_sums
from lit_rlhf.ppo.minibatch import Minibatch
from lit_rlhf.types import Experience

FROM_LENGTHS = ("response_length", "eos_rate")
"""What is known of an iteration whose scores or log-probabilities are not finite."""


def updated_moments(moments: RunningMoments, scores: Tensor) -> RunningMoments:
    """``moments`` with the scores ``(B,)`` of all ranks, merged in rank order. A collective."""
    own = RunningMoments().update_from(scores)
    for count, mean, m2 in all_gather_object((own.count, own.mean, own.m2)):
        moments = moments.update(count, mean, m2)
    return moments


def rollout_metrics(
    experience: Experience, entropy: Tensor, *, moments: RunningMoments, times: Mapping[str, float], sound: bool
) -> dict[str, float]:
    """Means over the iteration's responses and response tokens of all ranks. A collective.

    Args:
        experience: This rank's rows.
        entropy: Entropy of each next-token distribution, ``(B, T)``, nats.
        moments: Running moments of the raw scores.
        times: Seconds of each phase so far, as ``time/<phase>``.
        sound: False if the iteration is skipped: its columns hold zeros for what was not finite, and nothing but the
            lengths is reported.
    """
    per_token, per_response = _per_token(experience, entropy), _per_response(experience, moments)
    mask = experience.response_mask
    sums = [torch.where(mask, x, 0.0).double().sum() for x in per_token.values()]
    sums += [x.double().sum() for x in per_response.values()]
    counts = [mask.sum().double(), torch.tensor(float(len(experience)), dtype=torch.float64, device=mask.device)]
    reduced = all_reduce_sum(torch.stack([*counts, *sums]))
    tokens, responses = reduced[0].item(), reduced[1].item()
    values = reduced[2:].tolist()
    mean = {n: v / max(1.0, tokens) for n, v in zip(per_token, values, strict=False)}
    mean |= {n: v / max(1.0, responses) for n, v in zip(per_response, values[len(per_token) :], strict=True)}
    return {
        **_named(mean, sound=sound),
        **(_sampler_metrics(experience, tokens=tokens, responses=responses) if sound else {}),
        "rollout/tokens": tokens,
        "rollout/moments_mean": moments.mean,
        "rollout/moments_std": moments.std,
        **times,
        "time/tokens_per_second": tokens / max(1e-9, sum(times.values())),
    }


def _per_token(experience: Experience, entropy: Tensor) -> dict[str, Tensor]:
    ref = experience.ref_logprobs
    against_reference = {}
    if ref is not None:
        against_reference = {
            "kl": k1(experience.old_logprobs, ref),
            "kl_k3": k3(experience.old_logprobs, ref),
            "ref_nll": -ref,
        }
    return {
        **against_reference,
        "nll": -experience.old_logprobs,
        "entropy": entropy,
        "value": experience.old_values,
        "value_sq": experience.old_values.double().square(),
        "return": experience.returns,
        "return_sq": experience.returns.double().square(),
        "advantage": experience.advantages,
        "advantage_sq": experience.advantages.double().square(),
        "reward": experience.rewards,
    }


def _per_response(experience: Experience, moments: RunningMoments) -> dict[str, Tensor]:
    mask, ref = experience.response_mask, experience.ref_logprobs
    traveled = {} if ref is None else {"kl_sequence": keep(k1(experience.old_logprobs, ref), mask).sum(1)}
    return {
        **traveled,
        "score": experience.scores,
        "score_sq": experience.scores.double().square(),
        "score_normalized": (experience.scores - moments.mean) / moments.std,
        "response_length": mask.sum(1),
        "eos_rate": experience.ended,
        "reward_total": experience.rewards.sum(1),
    }


def _sampler_metrics(experience: Experience, *, tokens: float, responses: float) -> dict[str, float]:
    """How far the engine's distribution is from the policy's; nothing where the engine does not say. A collective."""
    sampler, mask = experience.sampler_logprobs, experience.response_mask
    if sampler is None:
        return {}
    gap, weights, squares = all_reduce_sum(sampler_sums(experience.old_logprobs, sampler, mask)).tolist()
    return {
        "rollout/sampler_gap": gap / max(1.0, tokens),
        "rollout/sampler_gap_max": float(all_reduce_max(largest_gap(experience.old_logprobs, sampler, mask))),
        "rollout/sampler_ess": effective_share(weights, squares, responses),
    }


def _std(mean: dict[str, float], name: str) -> float:
    return math.sqrt(max(0.0, mean[f"{name}_sq"] - mean[name] ** 2))


def _named(mean: dict[str, float], *, sound: bool) -> dict[str, float]:
    hidden = {name for name in mean if name.endswith("_sq")} | {"nll", "ref_nll"}
    known = [name for name in mean if name not in hidden] if sound else FROM_LENGTHS
    out = {f"rollout/{name}": mean[name] for name in known}
    out["rollout/cut_rate"] = 1.0 - mean["eos_rate"]
    if not sound:
        return out
    out |= {f"rollout/{name}_std": _std(mean, name) for name in ("score", "value", "return", "advantage")}
    for name, nll in (("perplexity", "nll"), ("ref_perplexity", "ref_nll")):
        if nll in mean:
            out[f"rollout/{name}"] = perplexity(mean[nll])
    return out


class UpdateSums:
    """Sums over a minibatch's micro-batches, reduced over ranks when they are read.

    Args:
        device: Where the sums live.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._shares: dict[str, Tensor] = {}
        self._tokens: dict[str, Tensor] = {}
        self._variance = torch.zeros(5, dtype=torch.float64, device=device)
        self._drift = torch.zeros((), dtype=torch.float32, device=device)
        self._has_values = False

    def add_share(self, name: str, loss: Tensor) -> None:
        """Add a micro-batch's share of a loss, already divided by the global minibatch's count."""
        self._shares[name] = self._shares.get(name, self._zero()) + loss.detach().double()

    def add_tokens(self, name: str, per_token: Tensor, mask: Tensor) -> None:
        """Add a quantity ``(b, t)`` of the response tokens; logged as its mean over the global minibatch's."""
        self._tokens[name] = self._tokens.get(name, self._zero()) + keep(per_token.detach(), mask).double().sum()

    def add_ratio(self, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> None:
        """Ratio, approximate KL and drift between two columns of log-probabilities, ``(b, t)`` each."""
        sums = ratio_sums(logprobs.detach(), old_logprobs, mask)
        for name, value in (("update/approx_kl", sums.approx_kl), ("update/ratio", sums.ratio)):
            self._tokens[name] = self._tokens.get(name, self._zero()) + value.double()
        self._drift = torch.maximum(self._drift, sums.drift)

    def add_values(self, values: Tensor, returns: Tensor, mask: Tensor) -> None:
        """What explained variance needs of the critic's values and its targets, ``(b, t)`` each."""
        self._variance += explained_variance_sums(values.detach(), returns, mask)
        self._has_values = True

    def means(self, minibatch: Minibatch) -> dict[str, float]:
        """The metrics of the minibatch over all ranks. A collective."""
        sums = {**self._shares, **self._tokens}
        names = sorted(sums)
        reduced = all_reduce_sum(torch.cat([torch.stack([sums[n] for n in names]), self._variance]))
        out: dict[str, float] = dict(zip(names, reduced[: len(names)].tolist(), strict=True))
        out |= {name: out[name] / minibatch.num_tokens for name in self._tokens}
        if "update/advantage_sq" in out:
            out["update/advantage_std"] = _std(out, "update/advantage")
            del out["update/advantage_sq"]
        if self._has_values:
            out["update/explained_variance"] = float(explained_variance_from_sums(reduced[len(names) :]))
        if minibatch.position == 0:
            out["update/ratio_drift"] = float(all_reduce_max(self._drift))
        return out

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self._device)
