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
from torch import Tensor

from lit_rlhf.strategies.checkpoint_io import safe_load, write_through

# What the optimizer shards hold besides tensors and plain values; no constructor of these runs anybody's code.
_PLAIN_CLASSES = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


class SafeCheckpointEngine(TorchCheckpointEngine):  # type: ignore[misc]
    """Writes each shard through to the disk, and reads none that would execute code.

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
        return load_shard(path, map_location=map_location)

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


def load_shard(path: str | Path, map_location: Any = None) -> Any:
    """One shard of a ZeRO checkpoint: tensors, plain values and DeepSpeed's own few plain classes.

    Raises:
        CheckpointError: If it would execute code, or is truncated.
    """
    with torch.serialization.safe_globals(_PLAIN_CLASSES):
        return safe_load(path, map_location=map_location)


def consolidated_state(folder: Path, tag: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a ZeRO checkpoint holds besides weights, and its fp32 weights joined from all shards.

    Args:
        folder: The checkpoint.
        tag: Name of the folder of the shards inside it.

    Raises:
        CheckpointError: If a shard would execute code, or is truncated.
        ValueError: If there are no shards.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    shards = sorted((folder / tag).glob("*_states.pt"))
    clients = [path for path in shards if path.name.endswith("model_states.pt")]
    if not clients or len(shards) == len(clients):
        raise ValueError(f"{folder} is not a whole DeepSpeed checkpoint: it has no shards in `{tag}`.")
    # DeepSpeed's converter unpickles anything, so every shard goes through the restricted reader before it.
    for path in shards:
        load_shard(path, map_location="cpu")
    content = load_shard(clients[0], map_location="cpu")
    weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=tag, exclude_frozen_parameters=True)
    return content, {key: value.clone() for key, value in weights.items()}
