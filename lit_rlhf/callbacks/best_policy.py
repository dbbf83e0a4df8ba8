"""The checkpoint that is best by held-out score, among those that stayed near the reference."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor


class BestPolicy(ModelCheckpoint):
    """Keeps the checkpoints with the highest held-out score subject to a bound on the held-out KL.

    A learned score keeps rising while the policy leaves the reference, where the score means nothing (Fig. 4); the
    bound says where to stop believing it. Without a candidate under the bound nothing is saved by this callback.

    Args:
        score_name: Metric to maximize, logged in validation.
        kl_name: Metric that is bounded, logged in validation, nats per token.
        kl_bound: Largest ``kl_name`` of a candidate.
        save_top_k: Checkpoints to keep.
        dirpath: Folder; default: where Lightning puts checkpoints.
        filename: File name pattern.

    Raises:
        ValueError: If ``kl_bound`` is not positive; at a validation's end, if ``kl_name`` was not logged.
    """

    def __init__(
        self,
        score_name: str = "val/score",
        kl_name: str = "val/kl",
        kl_bound: float = 0.1,
        save_top_k: int = 1,
        dirpath: str | None = None,
        filename: str = "best-{epoch}-{step}",
    ) -> None:
        if not kl_bound > 0:
            raise ValueError(f"`kl_bound` ({kl_bound}) must be positive.")
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=score_name,
            mode="max",
            save_top_k=save_top_k,
            save_on_train_epoch_end=False,
        )
        self.kl_name = kl_name
        self.kl_bound = kl_bound

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that nothing told which policy is the best."""
        super().on_train_end(trainer, pl_module)
        if str(self.monitor).startswith("val/") and not sum(trainer.num_val_batches):
            rank_zero_warn(f"`BestPolicy` keeps the best by {self.monitor}, and there was no validation: it kept none.")

    @property
    def state_key(self) -> str:
        """Of its own for each score and bound."""
        return self._generate_state_key(score_name=self.monitor, kl_name=self.kl_name, kl_bound=self.kl_bound)

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether ``current`` is among the best, and its policy within the bound; the same answer on all ranks."""
        if current is None or not torch.isfinite(current):
            return False
        if self.kl_name not in trainer.callback_metrics:
            raise ValueError(
                f"`kl_name` ({self.kl_name!r}) is not logged; there are {sorted(trainer.callback_metrics)}."
            )
        kl = float(trainer.callback_metrics[self.kl_name])
        # Unanimous, for Lightning calls collectives after a yes; written so that a NaN is outside.
        within = trainer.strategy.reduce_boolean_decision(kl <= self.kl_bound)
        if not within:
            rank_zero_info(f"Not a candidate for the best policy: {self.kl_name} {kl:.4f} > {self.kl_bound}.")
        return within and super().check_monitor_top_k(trainer, current)
