"""Correct, stable, resumable PPO for language models as plain PyTorch Lightning.

Everything that a user configures or derives from is here; importing the package is cheap, since a name is loaded when
it is first used. ``__init__.pyi`` says the same to type checkers and editors.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# PyTorch then asks the system for huge pages for tensors of 2 MiB and more on a CPU (docs/performance.md). It looks
# once, at the first tensor, so this is said before anything loads PyTorch.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"  # the one place: pyproject.toml reads it, tests hold CITATION.cff and the changelog to it

_MODULES = {
    "modules.ppo": "PPOModule",
    "modules.reward_model": "RewardModelModule",
    "modules.sft": "SFTModule",
    "modules.base": "BaseModule",
    "datamodules.rollout": "RolloutDataModule",
    "datamodules.preference": "PreferenceDataModule",
    "datamodules.sft": "SFTDataModule",
    "config": "AdapterConfig ModelConfig OptimizerConfig ScheduleConfig",
    "ppo.config": "CriticConfig LossConfig PPOOptimizerConfig PTXConfig ReferenceConfig ShapingConfig",
    "ppo.estimators": "AdvantageEstimator GAE GroupNormalized LeaveOneOut",
    "ppo.kl_controller": "AdaptiveKL FixedKL KLController",
    "ppo.losses": "ClippedSurrogate ClippedValueLoss CriticLoss KLPenaltySurrogate PolicyLoss",
    "rollout.engine": "RolloutEngine",
    "rollout.sampling": "SamplingConfig",
    "rollout.transformers_engine": "TransformersEngine",
    "rollout.vllm_engine": "VLLMEngine",
    "rollout.vllm_server_engine": "VLLMServerEngine",
    "rewards.base": "Reward",
    "rewards.http": "HTTPReward",
    "rewards.length": "LengthReward",
    "rewards.missing_eos": "MissingEOSReward",
    "rewards.mixture": "MixtureReward",
    "rewards.model": "ModelReward",
    "rewards.python": "PythonReward",
    "rewards.wrapper": "RewardWrapper",
    "callbacks.best_policy": "BestPolicy",
    "callbacks.collapse_detector": "CollapseDetector",
    "callbacks.collapse_rule": "RuleConfig",
    "callbacks.critic_warmup": "CriticWarmup",
    "callbacks.export": "ExportCallback",
    "callbacks.heartbeat": "Heartbeat",
    "callbacks.hooks": "RolloutCallback",
    "callbacks.kl_monitor": "KLMonitor",
    "callbacks.length_monitor": "ResponseLengthMonitor",
    "callbacks.monitor": "RolloutMonitor",
    "callbacks.perplexity_monitor": "PerplexityMonitor",
    "callbacks.prediction_writer": "JSONLWriter",
    "callbacks.progress_bar": "RLHFProgressBar",
    "callbacks.repetition_monitor": "RepetitionMonitor",
    "callbacks.reward_distribution": "RewardDistributionMonitor",
    "callbacks.run_checkpoint": "RunCheckpoint",
    "callbacks.sample_logger": "SampleLogger",
    "callbacks.stop_on_signal": "StopOnSignal",
    "strategies.checkpoint_io": "AtomicCheckpointIO",
    "strategies.cpu_deepspeed": "CPUZeroStrategy",
    "strategies.deepspeed": "ZeroStrategy",
    "evaluation.judges.base": "Judge",
    "evaluation.judges.chat": "ChatJudge",
    "evaluation.judges.human": "HumanJudge",
    "evaluation.judges.reward": "RewardJudge",
    "evaluation.judges.score": "ScoreJudge",
    "evaluation.opponent": "Opponent",
    "types": "Experience PromptBatch RewardOutput RewardRequest Rollout ScoredRollout",
}
"""Public names by the module they are in."""

_EXPORTS = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'lit_rlhf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
