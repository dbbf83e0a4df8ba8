"""DeepSpeed's checkpoint writer and reader, made durable and harmless; imported only once DeepSpeed itself is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from lit_rlhf.strategies.checkpoint_io import safe_load, sync_folder

# What the optimizer shards hold besides tensors and plain values; no constructor of these runs anybody's code.
_PLAIN_CLASSES = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


class SafeCheckpointEngine(TorchCheckpointEngine):  # type: ignore[misc]
    """Writes each shard through to the disk, and reads none that asks for code.

    A failed write is kept in :attr:`failure` instead of raised: DeepSpeed's save has barriers in it, and a rank that
    leaves early would let the others wait there for good.
    """

    def __init__(self, *, zipfile_serialization: bool) -> None:
        super().__init__()
        self.zipfile_serialization = zipfile_serialization
        self.failure: Exception | None = None

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Write one shard and flush it; a failure is remembered, not raised."""
        try:
            super().save(state_dict, path)
            sync_folder(Path(path))
        except (OSError, RuntimeError) as error:
            self.failure = error

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one shard with ``weights_only=True`` (DeepSpeed's own reader switches it off)."""
        with torch.serialization.safe_globals(_PLAIN_CLASSES):
            return safe_load(path, map_location=map_location)
