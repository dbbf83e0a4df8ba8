"""The strategies' names for YAML and ``Trainer(strategy=...)``."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import Strategy, StrategyRegistry

from lit_rlhf.strategies.cpu_deepspeed import CPUZeroStrategy
from lit_rlhf.strategies.deepspeed import ZeroStrategy

_NAMES: dict[str, tuple[type[Strategy], str, dict[str, Any]]] = {
    "lit_deepspeed_stage_2": (ZeroStrategy, "ZeRO-2 on CUDA with safe checkpoints", {}),
    "lit_deepspeed_stage_2_offload": (
        ZeroStrategy,
        "ZeRO-2 on CUDA, optimizer in host memory, safe checkpoints",
        {"offload_optimizer": True},
    ),
    "deepspeed_stage_2_cpu": (CPUZeroStrategy, "DeepSpeed's ZeRO-2 engine on CPU processes", {}),
}


def register_strategies() -> None:
    """Make the names known to Lightning; calling it again does nothing."""
    for name, (strategy, description, options) in _NAMES.items():
        if name not in StrategyRegistry:
            StrategyRegistry.register(name, strategy, description=description, **options)
