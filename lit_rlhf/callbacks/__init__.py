"""Monitors and gates, one file each; they plug into any Lightning trainer.

The public names are loaded on first use, so that importing one does not import them all.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "BestPolicy": "best_policy",
    "CollapseDetector": "collapse_detector",
    "CriticWarmup": "critic_warmup",
    "ExperienceLike": "hooks",
    "ExportCallback": "export",
    "Heartbeat": "heartbeat",
    "KLMonitor": "kl_monitor",
    "PerplexityMonitor": "perplexity_monitor",
    "RLHFProgressBar": "progress_bar",
    "RepetitionMonitor": "repetition_monitor",
    "ResponseLengthMonitor": "length_monitor",
    "RewardDistributionMonitor": "reward_distribution",
    "RolloutCallback": "hooks",
    "RolloutMonitor": "monitor",
    "RuleConfig": "collapse_rule",
    "RunCheckpoint": "run_checkpoint",
    "SampleLogger": "sample_logger",
    "StopOnSignal": "stop_on_signal",
    "emit_phase": "hooks",
    "emit_rollout": "hooks",
    "emit_validation": "hooks",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_EXPORTS)
