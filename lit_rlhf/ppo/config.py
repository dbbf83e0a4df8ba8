"""PPO's options in a few typed groups; docs/ppo.md maps each of the paper's twelve details to one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lit_rlhf.config import DType, OptimizerConfig, require

PolicyObjective = Literal["clip", "kl_penalty", "none"]
OldLogprobs = Literal["rollout", "reference", "sampler"]


@dataclass(frozen=True, kw_only=True)
class CriticConfig:
    """Where the critic comes from (detail 8).

    Attributes:
        init: `reward` (PPO-max: the reward model's trunk and head), `policy` (the SFT trunk under a fresh head), or a
            folder or hub name of a sequence-classification model.
    """

    init: str = "reward"


@dataclass(frozen=True, kw_only=True)
class FrozenConfig:
    """Placement of the reference.

    Attributes:
        placement: `device`, or `cpu` to keep it in host memory between scoring phases.
        dtype: Dtype of its weights.
    """

    placement: Literal["device", "cpu"] = "device"
    dtype: DType = "float32"


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


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The terms of the loss (details 2, 3, 6, 7 and 11).

    Attributes:
        objective: `clip` (eq. 15), `kl_penalty` (eq. 14) or `none` (the plain surrogate).
        clip_range: Epsilon of `clip`.
        kl_penalty_coef: Beta of `kl_penalty`.
        old_logprobs: Denominator of the ratio: `rollout` (recomputed over the update's own micro-batches), `reference`
            (detail 2, importance sampling), or `sampler` (as the engine saw them, with a logged drift).
        value_clip_range: Critic's clip (detail 7), or None.
        vf_coef: Weight of the value loss.
        entropy_coef: Weight of the entropy bonus (detail 3); 0 is off.
        entropy_clip: Entropy the release's form aims at; None for the plain bonus.
        whiten_advantages: Whiten advantages over the global minibatch (detail 6).
        advantage_clip: Bound of the advantages after whitening, or None.
        target_kl: Leave out an iteration's remaining updates once the approximate KL to the old policy exceeds this.
    """

    objective: PolicyObjective = "clip"
    clip_range: float = 0.2
    kl_penalty_coef: float = 0.1
    old_logprobs: OldLogprobs = "rollout"
    value_clip_range: float | None = 0.2
    vf_coef: float = 1.0
    entropy_coef: float = 0.0
    entropy_clip: float | None = None
    whiten_advantages: bool = False
    advantage_clip: float | None = None
    target_kl: float | None = None

    def __post_init__(self) -> None:
        require(self.clip_range > 0, "clip_range", self.clip_range, "must be positive; `objective: none` clips nothing")
        require(self.kl_penalty_coef >= 0, "kl_penalty_coef", self.kl_penalty_coef, "must not be negative")
        require(self.vf_coef >= 0, "vf_coef", self.vf_coef, "must not be negative")
        for name in ("value_clip_range", "advantage_clip", "target_kl", "entropy_clip"):
            value = getattr(self, name)
            require(value is None or value > 0, name, value, "must be positive or null")
        idle = self.entropy_clip is not None and self.entropy_coef == 0
        require(not idle, "entropy_clip", self.entropy_clip, "needs `entropy_coef` above 0")


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
    """Language-model loss on pretraining or SFT text beside the PPO loss (eq. 17).

    Attributes:
        data: Files, folders or hub names of text or dialogues.
        coef: lambda_ptx.
        batch_ratio: Text rows of an update per response of its minibatch.
        max_length: Tokens a row.
        format: Format of the rows; recognized if not given.
        template: Named chat template for tokenizers without one.
    """

    data: list[str]
    coef: float = 1.0
    batch_ratio: float = 1.0
    max_length: int = 1024
    format: str | None = None
    template: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.data), "ptx.data", self.data, "must name at least one file: the ptx loss needs text")
        require(self.coef > 0, "ptx.coef", self.coef, "must be positive; leave `ptx` out to switch it off")
        require(self.batch_ratio > 0, "ptx.batch_ratio", self.batch_ratio, "must be positive")
