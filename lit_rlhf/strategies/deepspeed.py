"""DeepSpeed ZeRO-2 with checkpoint folders that survive a kill, and a guard against lost gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lit_rlhf.distributed import all_gather_object
from lit_rlhf.strategies.checkpoint_io import (
    existing,
    failure_reason,
    noting_time,
    remove,
    replace_folder,
    sync_tree,
    temporary_path,
)
from lit_rlhf.strategies.errors import WORLD_SIZE_KEY, CheckpointError, require_zero

if TYPE_CHECKING:
    from lit_rlhf.strategies.zero_engine import SafeCheckpointEngine


def require_fp32_rotary(module: nn.Module) -> None:
    """Refuse rotary position embeddings whose frequencies are no longer fp32.

    In bf16 the angle at position 2,048 is off by up to 2.5 rad. A policy cast so and a frozen reference that is not
    differ before the first update, the more the longer the row.

    Raises:
        ValueError: Names the first such buffer.
    """
    for name, buffer in module.named_buffers():
        if name.rpartition(".")[2].endswith("inv_freq") and buffer.dtype != torch.float32:
            raise ValueError(
                f"Rotary frequencies must stay fp32; `{name}` is {str(buffer.dtype).removeprefix('torch.')}. deepspeed"
                " before 0.19.8 casts buffers as well as parameters, and so does `module.to(dtype)`."
            )


_TAG = "checkpoint"  # Lightning's name for the folder of the shards


class ZeroStrategy(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy at ZeRO stage 2 (or 1), for CUDA devices.

    What it adds:

    - A checkpoint folder is written beside its target, flushed, and renamed. A kill at any moment leaves a whole
      checkpoint; loading falls back to the predecessor when the kill fell between the two renames.
    - Shards are read with ``weights_only=True``; a pickle that would execute code is refused.
    - Under ZeRO a second backward without a step silently overwrites the gradient of the first. Here it raises,
      unless :func:`lit_rlhf.strategies.accumulation.accumulate` announced it.
    - The checkpoint/strategy/world-size mismatches end in one clear line.

    Stage 3 is refused: generation from partitioned parameters is a different design.

    Args:
        stage: ZeRO stage, 1 or 2.
        offload_optimizer: Keep the fp32 master weights and optimizer state in host memory and step there. Any torch
            optimizer works; the gradient shard travels to the host once a step.
        config: A DeepSpeed configuration (dict or path to JSON) in place of the one built from the arguments.
        **kwargs: Lightning's :class:`~lightning.pytorch.strategies.DeepSpeedStrategy` arguments.

    Raises:
        ValueError: If the stage is not 1 or 2, or stage 1 is to accumulate gradients in fp32.
    """

    strategy_name = "lit_deepspeed"

    def __init__(
        self,
        *,
        stage: int = 2,
        offload_optimizer: bool = False,
        config: str | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("exclude_frozen_parameters", True)  # they are where they were loaded from
        super().__init__(stage=stage, offload_optimizer=offload_optimizer, config=config, **kwargs)
        assert isinstance(self.config, dict)
        stage = self.config.get("zero_optimization", {}).get("stage", 0)
        if stage not in (1, 2):
            raise ValueError(f"`stage` ({stage}) of the DeepSpeed strategies must be 1 or 2.")
        if stage == 1 and self.config.get("data_types", {}).get("grad_accum_dtype") == "fp32":
            # In bf16 that is another optimizer of DeepSpeed's, which cannot say before a step whether it overflows.
            raise ValueError("`grad_accum_dtype` (fp32) in the DeepSpeed configuration needs `stage` 2.")
        # The engine's throughput timer wants a number; our loaders have no batch sampler to take it from.
        self.config.setdefault("train_micro_batch_size_per_gpu", 1)
        # Allows torch's own AdamW on the host, so that offloading needs no compiler.
        self.config.setdefault("zero_force_ds_cpu_optimizer", False)
        self._gradient_complete = False

    @override
    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Backward through the engine.

        Raises:
            RuntimeError: If the gradient of an earlier backward has not been applied yet and would be lost.
        """
        if self._gradient_complete:
            raise RuntimeError(
                "A second backward before `optimizer.step()` would overwrite the first one's gradient under ZeRO:"
                " sum the losses into one backward, or wrap each backward in"
                " `lit_rlhf.strategies.accumulation.accumulate(trainer, last=...)`."
            )
        loss = super().backward(closure_loss, optimizer, *args, **kwargs)
        self._gradient_complete = self.deepspeed_engine.is_gradient_accumulation_boundary()
        return loss

    @override
    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], *args: Any, **kwargs: Any) -> Any:
        """Step the engine.

        Raises:
            RuntimeError: If no backward was marked as the last one: the engine would skip the update in silence.
        """
        automatic = self.lightning_module is not None and self.lightning_module.automatic_optimization
        if self.deepspeed_engine.managed_gradient_accumulation() and not automatic and not self._gradient_complete:
            raise RuntimeError(
                "`optimizer.step()` without a complete gradient: the last backward of an accumulation must be inside"
                " `accumulate(trainer, last=True)`."
            )
        try:
            return super().optimizer_step(optimizer, closure, *args, **kwargs)
        finally:
            self._gradient_complete = False

    def gradient_is_finite(self) -> bool:
        """Whether the gradient of the backwards since the last step is finite on all ranks; collective.

        With fp16 the engine itself skips the steps whose scaled gradient overflows, and lowers the scale: True.
        """
        engine: Any = self.deepspeed_engine
        return engine.fp16_enabled() or not engine.optimizer.has_overflow()

    def discard_gradient(self) -> None:
        """Forget the gradient of the backwards since the last step: the update is skipped; collective.

        The engine's own way out of an overflow is taken, because only it knows all the places the gradient lies in:
        with an offloaded optimizer, the next gradient would otherwise be added to this one.
        """
        self._gradient_complete = False
        zero: Any = self.deepspeed_engine.optimizer
        checked = zero.check_grad_overflow
        zero.check_grad_overflow, zero.has_overflow = True, lambda *_, **__: True
        try:
            zero.step()
        finally:
            del zero.has_overflow  # the method is back
            zero.check_grad_overflow = checked

    @override
    def init_deepspeed(self) -> None:
        super().init_deepspeed()
        from lit_rlhf.strategies.zero_engine import SafeCheckpointEngine

        SafeCheckpointEngine.install(self.deepspeed_engine)
        require_fp32_rotary(self.deepspeed_engine.module)

    @override
    @noting_time()
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write the folder ``filepath``; collective.

        Raises:
            CheckpointError: On every rank, if any rank could not write; what was at ``filepath`` is still there.
            TypeError: If ``storage_options`` are given: no checkpoint plugin is involved here.
        """
        if storage_options is not None:
            raise TypeError("`storage_options` have no meaning for DeepSpeed checkpoint folders.")
        target = Path(self.broadcast(str(filepath)))
        temporary = temporary_path(target)
        with self._agreeing(target):
            if self.is_global_zero:
                remove(temporary)
                temporary.mkdir(parents=True)
        # DeepSpeed keeps the weights and the optimizer itself.
        kept = {k: v for k, v in checkpoint.items() if k not in ("state_dict", "optimizer_states")}
        with self._agreeing(target):
            self.deepspeed_engine.save_checkpoint(
                str(temporary),
                client_state={WORLD_SIZE_KEY: self.world_size, **kept},
                tag=_TAG,
                save_latest=False,
                exclude_frozen_parameters=self.exclude_frozen_parameters,
            )
        with self._agreeing(target):
            if self.is_global_zero:
                (temporary / "latest").write_text(_TAG)
                sync_tree(temporary)
                replace_folder(temporary, target)

    @contextmanager
    def _agreeing(self, target: Path) -> Iterator[None]:
        """A step of writing ``target``: when it has failed on one rank, it fails on all, with that rank's reason."""
        writer: SafeCheckpointEngine = self.deepspeed_engine.checkpoint_engine
        with writer.noting_failure():
            yield
        own = None if writer.failure is None else failure_reason(writer.failure)
        writer.failure = None
        reasons = {rank: reason for rank, reason in enumerate(all_gather_object(own)) if reason is not None}
        if not reasons:
            return
        if self.is_global_zero:
            remove(temporary_path(target))
        self.barrier()
        told = ", ".join(f"rank {rank}: {reason}" for rank, reason in reasons.items())
        raise CheckpointError(
            f"The checkpoint {target} could not be written ({told}). Earlier checkpoints are untouched: make room and"
            " resume from the last one."
        )

    @override
    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Load weights, optimizer shards and client state from a folder; collective.

        Raises:
            CheckpointError: If it is not a DeepSpeed folder, was written by another number of ranks (while fitting),
                or holds a pickle that would execute code.
            FileNotFoundError: If there is nothing at ``checkpoint_path``.
        """
        path = existing(checkpoint_path)
        assert self.lightning_module is not None
        fitting = self.lightning_module.trainer.state.fn == TrainerFn.FITTING
        require_zero(path, world_size=self.world_size if fitting else None)
        return super().load_checkpoint(path, weights_only)

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Nothing to do: the engine has loaded the weights."""
