"""DeepSpeed ZeRO-2 on CUDA and CPU with safe checkpoints; atomic checkpoint I/O.

Importing the package makes the names ``lit_deepspeed_stage_2``, ``lit_deepspeed_stage_2_offload`` and
``deepspeed_stage_2_cpu`` known to Lightning.
"""

from __future__ import annotations

from lit_rlhf.strategies.checkpoint_io import AtomicCheckpointIO
from lit_rlhf.strategies.cpu_deepspeed import CPUZeroStrategy
from lit_rlhf.strategies.deepspeed import ZeroStrategy
from lit_rlhf.strategies.errors import CheckpointError
from lit_rlhf.strategies.register import register_strategies

register_strategies()

__all__ = ["AtomicCheckpointIO", "CPUZeroStrategy", "CheckpointError", "ZeroStrategy", "register_strategies"]
