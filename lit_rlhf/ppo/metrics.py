"""PPO's own numbers, reduced over ranks before they are divided: definitions in docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_rlhf.distributed import all_reduce_max, all_reduce_sum
from lit_rlhf.functional.diagnostics import explained_variance_from_sums, explained_variance_sums, perplexity
from lit_rlhf.functional.kl import k1, k3
from lit_rlhf.functional.moments import RunningMoments
from lit_rlhf.types import Experience

if TYPE_CHECKING:
    from lit_rlhf.functional.losses import PolicyLoss, ValueLoss
    from lit_rlhf.ppo.minibatch import Minibatch


FROM_SCORES = ("score", "score_normalized", "reward", "reward_total", "return", "advantage")


def rollout_metrics(
    experience: Experience, entropy: Tensor, *, moments: RunningMoments, times: Mapping[str, float], scored: bool
) -> dict[str, float]:
    """Means over the iteration's responses and response tokens of all ranks.

    Args:
        experience: This rank's rows.
        entropy: Entropy of each next-token distribution, ``(B, T)``.
        moments: Running moments of the raw scores.
        times: Seconds of each phase so far, as ``time/<phase>``.
        scored: False if the scores stand in for some that were not finite: nothing is said of them then.
    """
    mask = experience.response_mask
    log_ratio = k1(experience.old_logprobs, experience.ref_logprobs)
    per_token = {
        "kl": log_ratio,
        "kl_k3": k3(experience.old_logprobs, experience.ref_logprobs),
        "nll": -experience.old_logprobs,
        "ref_nll": -experience.ref_logprobs,
        "entropy": entropy,
        "value": experience.old_values,
        "value_sq": experience.old_values.double().square(),
        "return": experience.returns,
        "return_sq": experience.returns.double().square(),
        "advantage": experience.advantages,
        "advantage_sq": experience.advantages.double().square(),
        "reward": experience.rewards,
    }
    normalized = (experience.scores - moments.mean) / moments.std
    per_response = {
        "score": experience.scores,
        "score_sq": experience.scores.double().square(),
        "score_normalized": normalized,
        "kl_sequence": torch.where(mask, log_ratio, 0.0).sum(1),
        "response_length": mask.sum(1),
        "eos_rate": experience.ended,
        "reward_total": experience.rewards.sum(1),
    }
    sums = [torch.where(mask, x, 0.0).double().sum() for x in per_token.values()]
    sums += [x.double().sum() for x in per_response.values()]
    counts = [mask.sum().double(), torch.tensor(float(len(experience)), dtype=torch.float64, device=mask.device)]
    reduced = all_reduce_sum(torch.stack([*counts, *sums]))
    tokens, responses = reduced[0].item(), reduced[1].item()
    values = reduced[2:].tolist()
    mean = {n: v / max(1.0, tokens) for n, v in zip(per_token, values, strict=False)}
    mean |= {n: v / max(1.0, responses) for n, v in zip(per_response, values[len(per_token) :], strict=True)}
    return {
        **_named(mean, tokens, scored=scored),
        "rollout/moments_mean": moments.mean,
        "rollout/moments_std": moments.std,
        **times,
        "time/tokens_per_second": tokens / max(1e-9, sum(times.values())),
    }


def _std(mean: dict[str, float], name: str) -> float:
    return math.sqrt(max(0.0, mean[f"{name}_sq"] - mean[name] ** 2))


def _named(mean: dict[str, float], tokens: float, *, scored: bool) -> dict[str, float]:
    plain = ["score", "score_normalized", "reward", "reward_total", "kl", "kl_k3", "kl_sequence", "response_length"]
    plain += ["eos_rate", "entropy", "value", "return", "advantage"]
    spread = ["score", "value", "return", "advantage"]
    if not scored:
        plain, spread = [n for n in plain if n not in FROM_SCORES], ["value"]
    return {
        **{f"rollout/{name}": mean[name] for name in plain},
        **{f"rollout/{name}_std": _std(mean, name) for name in spread},
        "rollout/cut_rate": 1.0 - mean["eos_rate"],
        "rollout/perplexity": perplexity(mean["nll"]),
        "rollout/ref_perplexity": perplexity(mean["ref_nll"]),
        "rollout/tokens": tokens,
    }


class UpdateSums:
    """Sums over a minibatch's micro-batches, reduced over ranks when they are read.

    Args:
        device: Where the sums live.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._variance = torch.zeros(5, dtype=torch.float64, device=device)
        self._drift = torch.zeros((), device=device)
        self._has_values = False

    def add(self, name: str, value: Tensor | float) -> None:
        """Add this micro-batch's share of ``name``."""
        wide = torch.as_tensor(value, device=self._device).detach().double()
        self._sums[name] = self._sums.get(name, torch.zeros_like(wide)) + wide

    def add_policy(self, result: PolicyLoss) -> None:
        """Loss, clip fraction, ratio and approximate KL of a micro-batch."""
        self.add("loss/policy", result.loss)
        for name, value in (
            ("update/clip_fraction", result.clipped),
            ("update/approx_kl", result.approx_kl),
            ("update/ratio", result.ratio),
        ):
            self.add(name, value)
        self._drift = torch.maximum(self._drift, result.ratio_drift.detach())

    def add_advantages(self, advantages: Tensor, mask: Tensor) -> None:
        """Advantages as the loss sees them, whitened and clipped or not."""
        kept = torch.where(mask, advantages, 0.0).double()
        self.add("update/advantage", kept.sum())
        self.add("update/advantage_sq", kept.square().sum())

    def add_value(self, result: ValueLoss, values: Tensor, returns: Tensor, mask: Tensor) -> None:
        """Value loss, its clip fraction and what explained variance needs."""
        self.add("loss/value", result.loss)
        self.add("update/value_clip_fraction", result.clipped)
        self._variance += explained_variance_sums(values.detach(), returns, mask)
        self._has_values = True

    def means(self, minibatch: Minibatch) -> dict[str, float]:
        """The metrics of the minibatch over all ranks. A collective."""
        names = sorted(self._sums)
        packed = torch.cat([torch.stack([self._sums[n].double() for n in names]), self._variance])
        reduced = all_reduce_sum(packed)
        out: dict[str, Any] = dict(zip(names, reduced[: len(names)].tolist(), strict=True))
        for name in names:
            if name.startswith("update/"):
                out[name] /= minibatch.num_tokens
        if "update/advantage_sq" in out:
            out["update/advantage_std"] = _std(out, "update/advantage")
            del out["update/advantage_sq"]
        if self._has_values:
            out["update/explained_variance"] = float(explained_variance_from_sums(reduced[len(names) :]))
        if minibatch.position == 0:
            out["update/ratio_drift"] = float(all_reduce_max(self._drift))
        return out
