"""DeepSpeed's checkpoint writer and reader, made durable and harmless; imported only once DeepSpeed itself is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from lit_rlhf.strategies.checkpoint_io import safe_load, write_through

# What the optimizer shards hold besides tensors and plain values; no constructor of these runs anybody's code.
_PLAIN_CLASSES = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


class SafeCheckpointEngine(TorchCheckpointEngine):  # type: ignore[misc]
    """Writes each shard through to the disk, and reads none that asks for code.

    A failed write is noted in :attr:`failure` instead of raised: DeepSpeed's save has barriers in it, and a rank that
    leaves early would let the others wait there for good.

    Args:
        zipfile_serialization: As DeepSpeed's configuration has it.
    """

    def __init__(self, *, zipfile_serialization: bool) -> None:
        super().__init__()
        self.zipfile_serialization = zipfile_serialization
        self.failure: Exception | None = None

    @contextmanager
    def noting_failure(self) -> Iterator[None]:
        """Keep the first failure to write in the body for later."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            self.failure = self.failure or error

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Write one shard and flush it."""
        with self.noting_failure():
            write_through(state_dict, Path(path), _use_new_zipfile_serialization=self.zipfile_serialization)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one shard with ``weights_only=True`` (DeepSpeed's own reader switches it off)."""
        with torch.serialization.safe_globals(_PLAIN_CLASSES):
            return safe_load(path, map_location=map_location)

    @classmethod
    def install(cls, engine: Any) -> None:
        """Make the DeepSpeed ``engine`` write and read through this class."""
        writer = cls(zipfile_serialization=getattr(engine.checkpoint_engine, "zipfile_serialization", False))
        copy = engine._copy_recovery_script

        def copy_recovery_script(save_path: str) -> None:
            with writer.noting_failure():
                copy(save_path)

        engine.checkpoint_engine = writer
        engine._copy_recovery_script = copy_recovery_script
