"""The seam between a training module and the callbacks: three hooks, and what they may read.

A module that samples responses calls :func:`emit_rollout` once an iteration, on all ranks, with the rank's own rows,
after the columns are computed and before the first update on them. That is all the monitors need; the module may be
anybody's. Optional extras, each used when present:

* ``pl_module.iteration: int``: the number of the rollout. Without it the trainer's global step stands for it.
* ``pl_module.tokenizer``: a Hugging Face tokenizer, for readable samples.
* ``pl_module.kl_controller`` with ``value: float`` and ``raise_by(factor)``: for ``CollapseDetector``.
* ``pl_module.export(path)``: for ``ExportCallback``.
* :func:`emit_validation`: responses to held-out prompts, for ``SampleLogger``.
* :func:`emit_phase`: ``"rollout"``, ``"scoring"``, ``"update"``, for ``RLHFProgressBar``.

``self.log`` is refused while a data loader runs, which is where a rollout happens; callbacks therefore keep what they
measured in the hook and log it at the next training batch.
"""

from __future__ import annotations

from typing import Any, Protocol

import lightning as L
from torch import Tensor


class ExperienceLike(Protocol):
    """The columns a monitor reads. B responses of at most T tokens; masks are bool, True = keep.

    :class:`lit_rlhf.types.Experience` satisfies it, and so does any object with these five attributes. Read as well
    when present: ``old_values``, ``advantages``, ``rewards`` (``(B, T)``), ``ended`` (``(B,)``), ``prompt_ids`` and
    ``prompt_mask`` (``(B, P)``).
    """

    @property
    def response_ids(self) -> Tensor:
        """Token ids of the responses, ``(B, T)`` int64."""

    @property
    def response_mask(self) -> Tensor:
        """True up to and including the first end-of-sequence token, ``(B, T)`` bool."""

    @property
    def old_logprobs(self) -> Tensor:
        """Log-probabilities under the policy that sampled, ``(B, T)`` fp32, nats."""

    @property
    def ref_logprobs(self) -> Any:
        """Log-probabilities under the reference model, ``(B, T)`` fp32, nats; None where there is no reference."""

    @property
    def scores(self) -> Tensor:
        """Raw score of each response, ``(B,)`` fp32."""


def emit_rollout(trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike) -> None:
    """Call ``on_rollout_end(trainer, pl_module, experience)`` of every callback that has it.

    Args:
        trainer: The running trainer.
        pl_module: The module that made the rollout.
        experience: This rank's rows. All ranks must call, for the callbacks reduce over ranks.
    """
    _emit(trainer, "on_rollout_end", pl_module, experience)


def emit_validation(trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike) -> None:
    """Call ``on_validation_rollout(trainer, pl_module, experience)``: responses to held-out prompts, in fixed order.

    Values, advantages and rewards are not looked at: nothing is learned from these.
    """
    _emit(trainer, "on_validation_rollout", pl_module, experience)


def emit_phase(trainer: L.Trainer, pl_module: L.LightningModule, phase: str) -> None:
    """Set ``pl_module.phase`` and call ``on_phase(trainer, pl_module, phase)`` of every callback that has it."""
    pl_module.phase = phase  # type: ignore[assignment]
    _emit(trainer, "on_phase", pl_module, phase)


def iteration_of(trainer: L.Trainer, pl_module: L.LightningModule) -> int:
    """The number of the current rollout: ``pl_module.iteration``, or the global step where the module has none."""
    return int(getattr(pl_module, "iteration", trainer.global_step))


def _emit(trainer: L.Trainer, hook: str, pl_module: L.LightningModule, payload: Any) -> None:
    # Not Lightning's own `call._call_callback_hooks`: it fails on callbacks without the hook.
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        method = getattr(callback, hook, None)
        if method is not None:
            method(trainer, pl_module, payload)
