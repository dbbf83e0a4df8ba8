"""Correct, stable, resumable PPO for language models as plain PyTorch Lightning.

Importing the package is cheap: the public names below are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "PPOModule": "lit_rlhf.modules.ppo",
    "RewardModelModule": "lit_rlhf.modules.reward_model",
    "SFTModule": "lit_rlhf.modules.sft",
    "RolloutDataModule": "lit_rlhf.datamodules.rollout",
    "PreferenceDataModule": "lit_rlhf.datamodules.preference",
    "SFTDataModule": "lit_rlhf.datamodules.sft",
}

__all__ = [
    "PPOModule",
    "PreferenceDataModule",
    "RewardModelModule",
    "RolloutDataModule",
    "SFTDataModule",
    "SFTModule",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'lit_rlhf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
