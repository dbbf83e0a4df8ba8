r"""Micro-batches, clipping and the gradient norm, the same on one device, DDP and ZeRO-2.

DDP and ZeRO average gradients over ranks, and micro-batches add up. With

.. math:: L_\text{micro} = \frac{\text{world size}}{N_\text{global}} \sum_{t \in \text{micro}} \ell_t ,

:math:`N_\text{global}` the token count of the minibatch over all ranks, the applied gradient is that of the mean over
the global minibatch, whatever the number of ranks, of micro-batches, and the tokens in each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lit_rlhf.strategies.deepspeed import ZeroStrategy


@contextmanager
def accumulate(trainer: L.Trainer, last: bool) -> Iterator[None]:  # noqa: FBT001
    """Wrap every ``manual_backward`` of a minibatch; ``last`` is True around the one before ``optimizer.step()``.

    ZeRO keeps only the gradient of the last backward unless told otherwise; DDP would reduce every time. Losses are
    not divided here. ZeRO reduces gradients in every backward, so the number of blocks must be the same on all ranks;
    a rank with fewer micro-batches fills up with any of them at loss weight 0.

    Args:
        trainer: The running trainer.
        last: Whether this is the final micro-batch of the minibatch.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        strategy.deepspeed_engine.set_gradient_accumulation_boundary(last)
        try:
            yield
        finally:
            # The flag is sticky: left False, `engine.step()` would apply nothing and say nothing.
            strategy.deepspeed_engine.set_gradient_accumulation_boundary(True)
    elif not last and isinstance(strategy.model, DistributedDataParallel):
        with strategy.model.no_sync():
            yield
    else:
        yield


def backward_parts(trainer: L.Trainer, parts: Iterable[Tensor]) -> Iterable[Tensor]:
    """What to run backward through, one after the other, for a micro-batch whose loss is the sum of ``parts``.

    On one device each part on its own, so that only one part's activations exist at a time if ``parts`` is lazy. DDP
    and ZeRO count on one backward pass that reaches every parameter: there it is the sum.

    Args:
        trainer: The running trainer.
        parts: Scalars that have no parameter in common, so that the gradients are the same bits either way.
    """
    if isinstance(trainer.strategy, SingleDeviceStrategy):
        return parts
    return [torch.stack(list(parts)).sum()]


def configure_clipping(trainer: L.Trainer, max_norm: float | None) -> None:
    """Hand the clipping threshold to DeepSpeed; call it in ``configure_optimizers``. Nothing to do elsewhere.

    Args:
        trainer: The running trainer.
        max_norm: Global gradient norm to clip to; None or 0 clips nothing.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        assert isinstance(strategy.config, dict)
        strategy.config["gradient_clipping"] = float(max_norm or 0.0)


def loss_scaler(trainer: L.Trainer) -> Any | None:
    """The ``GradScaler`` of precision `16-mixed`; None under any other, and under DeepSpeed, which has its own."""
    return getattr(trainer.precision_plugin, "scaler", None)


def loss_scale(trainer: L.Trainer) -> float:
    """What the gradients as they lie are multiplied with: fp16's loss scale, else 1."""
    scaler = loss_scaler(trainer)
    return 1.0 if scaler is None else float(scaler.get_scale())


def lower_loss_scale(trainer: L.Trainer, optimizer: Optimizer | LightningOptimizer) -> bool:
    """After a gradient that is not finite: lower fp16's loss scale, if that can be to blame; whether it was.

    At a scale of 1 or less the gradient itself is not finite, and no lower scale would help.
    """
    scaler = loss_scaler(trainer)
    if scaler is None or scaler.get_scale() <= 1.0:
        return False
    scaler.unscale_(getattr(optimizer, "optimizer", optimizer))  # notes the overflow, which `update` acts on
    scaler.update()
    return True


def clip_gradients(trainer: L.Trainer, optimizer: Optimizer | LightningOptimizer, max_norm: float | None) -> None:
    """Scale the gradients of all groups together to a global norm of at most ``max_norm``; None or 0: leave them.

    Under DeepSpeed nothing happens here: the engine clips in its step (:func:`configure_clipping`). Under fp16 the
    gradients are still multiplied with the loss scale, which Lightning takes off in the step, and so is the bound.
    """
    if max_norm and not isinstance(trainer.strategy, DeepSpeedStrategy):
        torch.nn.utils.clip_grad_norm_(_parameters(optimizer), max_norm * loss_scale(trainer))


def gradient_norm(trainer: L.Trainer, optimizer: Optimizer | LightningOptimizer | None = None) -> Tensor:
    """Global L2 norm of the gradients, before clipping and without fp16's loss scale, scalar fp32.

    Args:
        trainer: The running trainer.
        optimizer: Whose parameters; default: the trainer's only optimizer.

    Returns:
        Under DeepSpeed the norm of the *last applied* step (there is none before the step); elsewhere the norm of
        the gradients as they lie, so call it before :func:`clip_gradients`.
    """
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        norm = strategy.deepspeed_engine.get_global_grad_norm()
        return torch.as_tensor(0.0 if norm is None else norm, dtype=torch.float32, device=strategy.root_device)
    gradients = [p.grad for p in _parameters(optimizer or trainer.optimizers[0]) if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).float() / loss_scale(trainer)


def gradient_is_finite(trainer: L.Trainer, norm: Tensor) -> bool:
    """Whether the gradient can be stepped along; collective under ZeRO.

    Args:
        trainer: The running trainer.
        norm: The gradient's norm, the same on all ranks; under ZeRO, which has none yet, any finite number.
    """
    if isinstance(trainer.strategy, ZeroStrategy):
        return trainer.strategy.gradient_is_finite()
    return bool(norm.isfinite())


def discard_gradient(trainer: L.Trainer, optimizer: Optimizer | LightningOptimizer) -> None:
    """Forget the gradient of the backwards since the last step: the update is skipped; collective under ZeRO."""
    optimizer.zero_grad()
    if isinstance(trainer.strategy, ZeroStrategy):
        trainer.strategy.discard_gradient()


def clipped_step(trainer: L.Trainer, optimizer: LightningOptimizer, max_norm: float | None) -> Tensor:
    """Clip, step, zero the gradients; the norm before clipping, scalar fp32.

    The order differs by strategy (ZeRO knows its norm only afterwards), which is why this is one call.
    """
    sharded = isinstance(trainer.strategy, DeepSpeedStrategy)
    norm = torch.zeros(()) if sharded else gradient_norm(trainer, optimizer)
    clip_gradients(trainer, optimizer, max_norm)
    optimizer.step()
    optimizer.zero_grad()
    return gradient_norm(trainer) if sharded else norm


def _parameters(optimizer: Optimizer | LightningOptimizer) -> list[Any]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
