"""Train the critic before the policy moves."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.hooks import RemovableHandle

from lit_rlhf.callbacks.hooks import ExperienceLike, RolloutCallback
from lit_rlhf.distributed import any_rank


class CriticWarmup(RolloutCallback):
    """Holds the policy still for the first iterations, bit for bit, while the critic learns on its responses.

    The paper recommends a pre-trained critic *instead* of a learning-rate warm-up (Fig. 5 detail 8, Fig. 8). The module
    still computes its whole loss; only the learning rate of one parameter group is zero, and only for the
    duration of the optimizer's own ``step()``. So the optimizer's moments are warm when the policy is let go, DDP and
    ZeRO-2 see the same graph in every step, and no scheduler ever reads the zero, recursive ones included. (A
    learning-rate logger therefore shows the nominal rate; ``monitor/critic_warmup/active`` shows the gate.) AdamW's
    weight decay is multiplied by the learning rate, so it moves nothing either; optimizers whose update does not scale
    with ``lr`` are outside this callback's promise.

    Ends after ``iterations`` rollouts, or as soon as a given threshold is passed at the start of a rollout, whichever
    is first. Counts rollouts, so the module must call :func:`~lit_rlhf.callbacks.hooks.emit_rollout`.

    Args:
        iterations: Rollouts that train the critic only; the upper limit when a threshold is given.
        value_loss: End once the last logged ``value_loss_name`` is at most this.
        explained_variance: End once the last logged ``explained_variance_name`` is at least this.
        group: ``name`` of the policy's parameter group.
        value_loss_name: Name the value loss is logged under.
        explained_variance_name: Name the explained variance is logged under.

    Raises:
        ValueError: If ``iterations`` is negative or ``explained_variance`` is above 1; at the start of training, if no
            parameter group is called ``group``; after an iteration, if a threshold's metric is not logged.
    """

    def __init__(
        self,
        iterations: int = 10,
        value_loss: float | None = None,
        explained_variance: float | None = None,
        group: str = "policy",
        value_loss_name: str = "loss/value",
        explained_variance_name: str = "update/explained_variance",
    ) -> None:
        if iterations < 0:
            raise ValueError(f"`iterations` ({iterations}) must not be negative.")
        if explained_variance is not None and explained_variance > 1:
            raise ValueError(f"`explained_variance` ({explained_variance}) must be at most 1.")
        self.iterations = iterations
        self.value_loss = value_loss
        self.explained_variance = explained_variance
        self.group = group
        self.value_loss_name = value_loss_name
        self.explained_variance_name = explained_variance_name
        self.active = iterations > 0
        self._rollouts = 0
        self._handles: list[RemovableHandle] = []
        self._held: list[tuple[dict[str, Any], Any]] = []

    @property
    def state_key(self) -> str:
        """Of its own for each parameter group; a resumed run may have other thresholds."""
        return self._generate_state_key(group=self.group)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gate the optimizers' ``step``."""
        optimizers = [_innermost(optimizer) for optimizer in trainer.optimizers]
        names = [group.get("name") for optimizer in optimizers for group in optimizer.param_groups]
        if self.group not in names:
            raise ValueError(f"`group` ({self.group!r}) must be the `name` of a parameter group; there are {names}.")
        for optimizer in optimizers:
            self._handles += [
                optimizer.register_step_pre_hook(self._hold),
                optimizer.register_step_post_hook(self._release),
            ]

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike) -> None:
        """Count the rollout; decide whether the updates on it may move the policy."""
        if self.active:
            done = self._rollouts >= self.iterations or (self._rollouts > 0 and self._passed(trainer))
            self.active = not any_rank(done, pl_module.device)
            self._rollouts += 1
            if not self.active:
                rank_zero_info(
                    f"Critic warm-up ended after {self._rollouts - 1} iterations; the policy trains from now."
                )

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log whether the policy is held."""
        pl_module.log("monitor/critic_warmup/active", float(self.active), batch_size=1)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the gate off."""
        self._detach()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Take the gate off."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Whether the policy is held, and the rollouts seen."""
        return {"active": self.active, "rollouts": self._rollouts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where the checkpoint was."""
        self.active, self._rollouts = state_dict["active"], state_dict["rollouts"]

    def _hold(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # ZeRO steps one group at a time with `param_groups` swapped, so look at what is there now.
        groups = [g for g in optimizer.param_groups if self.active and g.get("name") == self.group]
        self._held = [(group, group["lr"]) for group in groups]
        for group, lr in self._held:
            group["lr"] = torch.zeros_like(lr) if isinstance(lr, torch.Tensor) else 0.0

    def _release(self, *_: Any) -> None:
        for group, lr in self._held:
            group["lr"] = lr
        self._held = []

    def _passed(self, trainer: L.Trainer) -> bool:
        loss, variance = self.value_loss, self.explained_variance
        low = loss is not None and _logged(trainer, self.value_loss_name) <= loss
        explained = variance is not None and _logged(trainer, self.explained_variance_name) >= variance
        return low or explained

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The torch optimizer inside DeepSpeed's wrappers, the one whose ``step`` does the arithmetic."""
    while not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _logged(trainer: L.Trainer, name: str) -> float:
    if name not in trainer.callback_metrics:
        raise ValueError(f"`CriticWarmup` needs the metric {name!r}; logged are {sorted(trainer.callback_metrics)}.")
    return float(trainer.callback_metrics[name])
