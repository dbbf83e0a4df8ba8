"""Which options of PPO fit each other: refused before anything loads."""

from __future__ import annotations

from typing import Protocol

from lit_rlhf.config import ModelConfig, check_object
from lit_rlhf.ppo.config import LossConfig
from lit_rlhf.ppo.estimators import AdvantageEstimator
from lit_rlhf.ppo.kl_controller import KLController
from lit_rlhf.ppo.losses import CriticLoss, PolicyLoss

_PARTS = {
    "estimator": ("AdvantageEstimator", "GAE(), GroupNormalized(), LeaveOneOut()"),
    "kl_controller": ("KLController", "FixedKL(coef=0.02), AdaptiveKL()"),
    "policy_loss": ("PolicyLoss", "ClippedSurrogate(clip_range=0.2), KLPenaltySurrogate()"),
    "critic_loss": ("CriticLoss", "ClippedValueLoss(clip_range=0.2)"),
    "engine": ("RolloutEngine", "TransformersEngine(), VLLMEngine()"),
}
"""What each argument is, and how one is written."""


def check_parts(**parts: object) -> None:
    """Refuse plain values and classes where objects belong; None is the default.

    Args:
        parts: Arguments of the module by name, of those in ``_PARTS``.

    Raises:
        ValueError: Argument, value and examples.
    """
    for name, value in parts.items():
        kind, examples = _PARTS[name]
        check_object(kind, value, name, examples)


class _Engine(Protocol):
    gives_logprobs: bool


def check_options(
    *,
    loss: LossConfig,
    policy_loss: PolicyLoss,
    critic_loss: CriticLoss | None,
    estimator: AdvantageEstimator,
    kl_controller: KLController,
    engine: _Engine,
    has_reference: bool,
    model: ModelConfig | None = None,
) -> None:
    """Refuse what would be ignored, or fail after the first rollout.

    Args:
        loss: Weights and sources.
        policy_loss: For what it reads.
        critic_loss: As given, None where nothing was.
        estimator: For whether there is a critic.
        kl_controller: For its coefficient.
        engine: For what it gives.
        has_reference: Whether a reference is configured.
        model: How models are loaded.

    Raises:
        ValueError: Names the option, its value and the rule.
    """
    if model is not None and model.adapter is not None and model.adapter.dropout > 0:
        raise ValueError(
            f"`adapter.dropout` ({model.adapter.dropout}) must be 0 in PPO: the update must see the distribution that "
            "sampled."
        )
    if critic_loss is not None and not estimator.needs_critic:
        raise ValueError(
            f"`critic_loss` ({type(critic_loss).__name__}) needs a critic, which {type(estimator).__name__} does not "
            "use: leave it out."
        )
    if loss.old_logprobs == "sampler" and not engine.gives_logprobs:
        raise ValueError("`loss.old_logprobs: sampler` needs an engine with `sampler_logprobs: true`.")
    if loss.sampler_correction is not None and not engine.gives_logprobs:
        raise ValueError(
            f"`loss.sampler_correction` ({loss.sampler_correction}) needs an engine with `sampler_logprobs: true`."
        )
    if has_reference:
        return
    if loss.old_logprobs == "reference":
        raise ValueError("`reference` (null) is needed by `loss.old_logprobs: reference`.")
    if policy_loss.needs_reference:
        raise ValueError(f"`reference` (null) is needed by `policy_loss` ({type(policy_loss).__name__}).")
    if not kl_controller.without_penalty:
        raise ValueError(
            f"`reference` (null) is needed by the KL penalty: give a reference, or a `kl_controller` that is always 0 "
            f"(FixedKL with coef 0), not {type(kl_controller).__name__} at {kl_controller.value}."
        )
