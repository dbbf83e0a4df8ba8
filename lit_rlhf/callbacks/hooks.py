"""The seam between a training module and the callbacks: three hooks, and what they may read.

A module that samples responses calls :func:`emit_rollout` once per iteration, on all ranks, with the rank's own rows,
after the columns are computed and before the first update on them. That is all the monitors need; the module may be
anybody's. Optional extras, each used when present:

* ``pl_module.rollout_metrics: Mapping[str, float]``: what the module itself logs of the rollout just made, by name,
  equal on all ranks; set before :func:`emit_rollout`. A monitor neither computes nor logs a name that is in it, and
  ``CollapseDetector`` takes the value from there.
* ``pl_module.iteration: int``: the number of the rollout. Without it the trainer's global step stands for it.
* ``pl_module.tokenizer``: a Hugging Face tokenizer, for readable samples.
* ``pl_module.kl_controller`` with ``value: float`` and ``raise_by(factor)``: for ``CollapseDetector``.
* ``pl_module.export(path)``: for ``ExportCallback``.
* :func:`emit_validation`: responses to held-out prompts, for ``SampleLogger``.
* :func:`emit_phase`: ``"rollout"``, ``"scoring"``, ``"update"``, for ``RLHFProgressBar``.

A callback derives from :class:`RolloutCallback`; any other that has a method of a hook's name is called as well.

``self.log`` is refused while a data loader runs, which is where a rollout happens; callbacks therefore keep what they
measured in the hook and log it at the next training batch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from lit_rlhf.jsonl import append_rows


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
    def ref_logprobs(self) -> Tensor | None:
        """Log-probabilities under the reference model, ``(B, T)`` fp32, nats; None where there is no reference."""

    @property
    def scores(self) -> Tensor:
        """Raw score of each response, ``(B,)`` fp32."""


class RolloutCallback(L.Callback):
    """A Lightning callback with the three hooks of this file, each of which does nothing until it is overridden.

    A subclass with state whose instances differ in arguments gives ``state_key`` from them
    (``self._generate_state_key(name=self.name)``), so that two live in one trainer. Where an argument in the key has
    changed since a checkpoint, its state is taken all the same if no other callback claims it.

    Raises:
        TypeError: When a subclass is defined whose method is called almost like a hook: nobody would ever call it.
    """

    _called = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = sorted({name for base in cls.__bases__ for name in dir(base) if name.startswith("on_")})
        for name, value in vars(cls).items():
            if name.startswith("on_") and callable(value) and name not in known:
                close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
                if close:
                    raise TypeError(f"`{cls.__qualname__}.{name}` is no hook: did you mean `{close[0]}`?")

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike) -> None:
        """Called once per iteration on all ranks, after the rollout is scored and before the first update on it.

        Args:
            trainer: The running trainer.
            pl_module: The module that made the rollout. ``self.log`` is refused: a data loader runs.
            experience: This rank's B rows of at most T tokens: ``response_ids``, ``response_mask``, ``old_logprobs``,
                ``ref_logprobs`` ``(B, T)``, ``scores (B,)``, and more where the module has it.
        """

    def on_validation_rollout(
        self, trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike
    ) -> None:
        """Called on all ranks with the responses to each batch of held-out prompts, which come in a fixed order.

        Args:
            trainer: The running trainer.
            pl_module: The module that answered.
            experience: As in :meth:`on_rollout_end`, without values, advantages and rewards: nothing is learned here.
        """

    def on_phase(self, trainer: L.Trainer, pl_module: L.LightningModule, phase: str) -> None:
        """Called when a part of the iteration begins.

        Args:
            trainer: The running trainer.
            pl_module: The module, whose ``phase`` is already the new one.
            phase: ``rollout``, ``scoring`` or ``update``.
        """

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that a callback which waits for rollouts has seen none; a subclass that overrides it calls ``super``."""
        waits = type(self).on_rollout_end is not RolloutCallback.on_rollout_end
        if waits and not self._called and not hasattr(pl_module, "rollout_metrics"):
            rank_zero_warn(
                f"`{type(self).__name__}` has seen no rollout: {type(pl_module).__name__} never called "
                "`lit_rlhf.callbacks.emit_rollout`."
            )

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the state of this class that nobody claims, where an argument in the key has changed."""
        states = checkpoint.get("callbacks", {})
        if self.state_key in states:
            return  # Lightning loads it
        claimed = {callback.state_key for callback in trainer.callbacks}  # type: ignore[attr-defined]
        free = [k for k in states if str(k).split("{")[0] == type(self).__qualname__ and k not in claimed]
        if len(free) == 1:
            rank_zero_info(f"`{free[0]}` of the checkpoint resumes as `{self.state_key}`.")
            self.load_state_dict(deepcopy(states[free[0]]))


def emit_rollout(trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike) -> None:
    """Call :meth:`RolloutCallback.on_rollout_end` of every callback that has it.

    Args:
        trainer: The running trainer.
        pl_module: The module that made the rollout.
        experience: This rank's rows. All ranks must call, for the callbacks reduce over ranks.
    """
    _emit(trainer, "on_rollout_end", pl_module, experience)


def emit_validation(trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike) -> None:
    """Call :meth:`RolloutCallback.on_validation_rollout` of every callback that has it; arguments as there."""
    _emit(trainer, "on_validation_rollout", pl_module, experience)


def emit_phase(trainer: L.Trainer, pl_module: L.LightningModule, phase: str) -> None:
    """Set ``pl_module.phase`` and call :meth:`RolloutCallback.on_phase` of every callback that has it."""
    pl_module.phase = phase  # type: ignore[assignment]
    _emit(trainer, "on_phase", pl_module, phase)


def append_to_run(trainer: L.Trainer, filename: str, rows: list[dict[str, Any]]) -> None:
    """Add JSON lines to a file of the run directory; rank 0 writes, a ``fast_dev_run`` leaves no trace."""
    if trainer.is_global_zero and writes_files(trainer):
        append_rows(Path(trainer.default_root_dir) / filename, rows)


def writes_files(trainer: L.Trainer) -> bool:
    """Whether this run may leave anything behind: Lightning's ``fast_dev_run`` promises that it does not."""
    return not getattr(trainer, "fast_dev_run", False)


def iteration_of(trainer: L.Trainer, pl_module: L.LightningModule) -> int:
    """The number of the current rollout: ``pl_module.iteration``, or the global step where the module has none."""
    return int(getattr(pl_module, "iteration", trainer.global_step))


def known_metrics(pl_module: L.LightningModule) -> Mapping[str, float]:
    """What the module says of the rollout itself (``rollout_metrics``); empty where it says nothing.

    Raises:
        TypeError: If it is no mapping.
    """
    known = getattr(pl_module, "rollout_metrics", {})
    if not isinstance(known, Mapping):
        name = f"{type(pl_module).__name__}.rollout_metrics"
        raise TypeError(f"`{name}` ({type(known).__name__}) must be a mapping of metric names to values.")
    return known


def _emit(trainer: L.Trainer, hook: str, pl_module: L.LightningModule, payload: Any) -> None:
    # Not Lightning's own `call._call_callback_hooks`: it fails on callbacks without the hook.
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        method = getattr(callback, hook, None)
        if method is not None:
            if hook != "on_phase" and isinstance(callback, RolloutCallback):
                callback._called = True
            method(trainer, pl_module, payload)
