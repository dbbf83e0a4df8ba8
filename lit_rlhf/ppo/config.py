"""PPO's options in a few typed groups; docs/ppo.md maps each of the paper's twelve details to one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lit_rlhf.config import DType, OptimizerConfig, check_choices, require
from lit_rlhf.functional.sampler import SamplerCorrection

OldLogprobs = Literal["rollout", "reference", "sampler"]


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Where the critic comes from (detail 8).

    Attributes:
        init: `reward` (PPO-max: the reward model's trunk and head), `policy` (the SFT trunk under a fresh head), or a
            folder or hub name of a sequence-classification model. None: `reward` where the reward is a model, else
            `policy`.
        num_layers: Keep the first layers of its trunk alone, with `init: policy`; None for all.
        adapter: With `model.adapter`: train an adapter and the head (true), or all weights of a model of its own.
    """

    init: str | None = None
    num_layers: int | None = None
    adapter: bool = True

    def __post_init__(self) -> None:
        layers = self.num_layers
        require(layers is None or layers >= 1, "critic.num_layers", layers, "must be at least 1")
        fresh = layers is None or self.init == "policy"
        require(fresh, "critic.num_layers", layers, "needs `critic.init: policy`: a trained head reads the last layer")


@dataclass(frozen=True, kw_only=True)
class ReferenceConfig:
    """The frozen reference policy, which the KL penalty is measured against.

    Attributes:
        path: Folder or hub name; None for the policy's own.
        placement: `device`, or `cpu` to keep it in host memory between scoring phases.
        dtype: Dtype of its weights; None for that of the policy's on the device: then it computes the same numbers, and
            the KL before the first update is exactly 0. With `model.adapter`, a reference on the policy's base runs on
            its very weights, unless `placement` is `cpu` or `dtype` another than theirs: then it has its own. With
            gradient checkpointing on a CPU the policy's rows are padded and the reference's are not, so that the KL
            is 0 up to rounding.
    """

    path: str | None = None
    placement: Literal["device", "cpu"] = "device"
    dtype: DType | None = None

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True, kw_only=True)
class ShapingConfig:
    """From raw scores to shaped ones (details 4 and 5); the KL penalty of detail 1 is the controller's.

    Attributes:
        normalize: Subtract the running mean and divide by the running standard deviation (eq. 18).
        scale: Divide by the running standard deviation only.
        clip: Bound of the shaped score, or None.
        missing_eos_penalty: Subtracted from the raw score of responses the length limit cut, or None.
        missing_eos_score: Raw score such responses get instead of theirs, or None.
    """

    normalize: bool = True
    scale: bool = False
    clip: float | None = 0.8
    missing_eos_penalty: float | None = None
    missing_eos_score: float | None = None

    def __post_init__(self) -> None:
        require(self.clip is None or self.clip > 0, "clip", self.clip, "must be positive or null")
        require(not (self.normalize and self.scale), "scale", self.scale, "excludes `normalize`: use one of the two")
        both = self.missing_eos_penalty is not None and self.missing_eos_score is not None
        require(not both, "missing_eos_penalty", self.missing_eos_penalty, "excludes `missing_eos_score`")
        penalty = self.missing_eos_penalty
        require(penalty is None or penalty >= 0, "missing_eos_penalty", penalty, "must not be negative")
        for name in ("missing_eos_penalty", "missing_eos_score"):
            require(math.isfinite(getattr(self, name) or 0.0), name, getattr(self, name), "must be finite")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How the terms of the loss are put together (details 2, 3 and 6); the terms themselves are in ``ppo/losses.py``.

    Attributes:
        old_logprobs: Denominator of the ratio: `rollout` (recomputed over the update's own micro-batches), `reference`
            (detail 2, importance sampling), or `sampler` (as the engine saw them, with a logged drift).
        sampler_correction: Weight of the policy loss where an engine draws from another distribution than the
            policy's: `token` (each one's ratio of policy to sampler), `sequence` (a response's), or None. Needs an
            engine with `sampler_logprobs: true`.
        sampler_cap: Largest such weight (truncated importance sampling).
        average: Mean of the policy loss over the `tokens` of the global minibatch, or over its `responses` (of each
            one's own mean, so that short and long ones weigh the same).
        vf_coef: Weight of the value loss.
        ptx_coef: Weight of the language-model loss on text (eq. 17), where the data has `ptx`.
        entropy_coef: Weight of the entropy bonus (detail 3); 0 is off.
        entropy_clip: Entropy the release's form aims at; None for the plain bonus.
        whiten_advantages: Whiten advantages over the global minibatch (detail 6).
        advantage_clip: Bound of the advantages after whitening, or None.
        target_kl: End an iteration's updates early once the approximate KL to the old policy exceeds this.
    """

    old_logprobs: OldLogprobs = "rollout"
    sampler_correction: SamplerCorrection | None = None
    sampler_cap: float = 2.0
    average: Literal["tokens", "responses"] = "tokens"
    vf_coef: float = 1.0
    ptx_coef: float = 1.0
    entropy_coef: float = 0.0
    entropy_clip: float | None = None
    whiten_advantages: bool = False
    advantage_clip: float | None = None
    target_kl: float | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.vf_coef >= 0, "vf_coef", self.vf_coef, "must not be negative")
        require(self.ptx_coef > 0, "ptx_coef", self.ptx_coef, "must be positive; leave `data.ptx` out to switch it off")
        for name in ("advantage_clip", "target_kl", "entropy_clip"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "must be positive or null")
        idle = self.entropy_clip is not None and self.entropy_coef == 0
        require(not idle, "entropy_clip", self.entropy_clip, "needs `entropy_coef` above 0")
        level = self.sampler_correction
        require(self.sampler_cap >= 1, "sampler_cap", self.sampler_cap, "must be at least 1")
        both = level is not None and self.old_logprobs != "rollout"
        require(not both, "sampler_correction", level, "needs `old_logprobs: rollout`: the others are no ratio to it")
        both = self.old_logprobs == "reference" and self.target_kl is not None
        require(not both, "target_kl", self.target_kl, "measures the old policy; `old_logprobs: reference` has none")


@dataclass(frozen=True, kw_only=True)
class PPOOptimizerConfig(OptimizerConfig):
    """AdamW with one learning rate a group.

    Attributes:
        lr: Peak learning rate of the policy; the paper's 5e-7.
        critic_lr: Peak learning rate of the critic; the paper's 1.65e-6.
    """

    lr: float = 5e-7
    critic_lr: float = 1.65e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.critic_lr >= 0, "critic_lr", self.critic_lr, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class PTXConfig:
    """Pretraining or SFT text beside the rollouts (eq. 17); its weight is `loss.ptx_coef`.

    Attributes:
        files: Files, folders or hub names of text or dialogues.
        batch_ratio: Text rows of an update per response of its minibatch.
        max_length: Tokens per row.
        format: Format of the rows; recognized if not given.
        template: Named chat template for tokenizers without one.
        columns: Our names of columns that have others.
        separator: What stands in front of plain text, e.g. `<|endoftext|>`, with nothing behind it; "" for nothing.
            None: the tokenizer's BOS and EOS, which mean turns to a chat model. Dialogues are not concerned.
    """

    files: list[str]
    batch_ratio: float = 1.0
    max_length: int = 1024
    format: str | None = None
    template: str | None = None
    columns: dict[str, str] | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.files), "ptx.files", self.files, "must name at least one file: the ptx loss needs text")
        require(self.batch_ratio > 0, "ptx.batch_ratio", self.batch_ratio, "must be positive")
