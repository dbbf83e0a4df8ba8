"""A hand-written Lightning module that is not ours: it knows the seam's functions and nothing else of the library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

from lit_rlhf.callbacks import hooks


@dataclass
class Columns:
    response_ids: Tensor
    response_mask: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    scores: Tensor
    ended: Tensor
    old_values: Tensor
    advantages: Tensor


def made_up(rows: int = 8, width: int = 6, seed: int = 0, drift: float = 0.1, score: float = 0.0) -> Columns:
    """Responses of random length, garbage outside the mask so that a monitor that forgets it is seen."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=g)
    mask = torch.arange(width)[None] < lengths[:, None]
    ref = -torch.rand(rows, width, generator=g) - 0.5
    old = ref + drift * torch.rand(rows, width, generator=g)
    garbage = torch.full_like(ref, 1e6)
    return Columns(
        response_ids=torch.randint(3, 20, (rows, width), generator=g),
        response_mask=mask,
        old_logprobs=torch.where(mask, old, garbage),
        ref_logprobs=torch.where(mask, ref, -garbage),
        scores=torch.randn(rows, generator=g) + score,
        ended=torch.rand(rows, generator=g) < 0.7,
        old_values=torch.randn(rows, width, generator=g),
        advantages=torch.randn(rows, width, generator=g),
    )


class Controller:
    def __init__(self) -> None:
        self.value = 0.1

    def raise_by(self, factor: float) -> None:
        self.value *= factor


class Rollouts:
    """Sized, lazy: the rollout happens inside the epoch, at the first `next`."""

    def __init__(self, module: StandIn) -> None:
        self.module = module

    def __len__(self) -> int:
        return self.module.updates

    def __iter__(self) -> Iterator[Tensor]:
        return self.batches()

    def batches(self) -> Iterator[Tensor]:
        module = self.module
        for phase in ("rollout", "scoring"):
            hooks.emit_phase(module.trainer, module, phase)
        hooks.emit_rollout(module.trainer, module, module.rollout())
        hooks.emit_phase(module.trainer, module, "update")
        for k in range(module.updates):
            yield torch.randn(4, 3, generator=torch.Generator().manual_seed(100 * module.trainer.current_epoch + k))


class StandIn(L.LightningModule):
    """Two linear layers called policy and critic, manual optimization, a recursive scheduler."""

    def __init__(self, updates: int = 2, weight_decay: float = 0.1) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(0)
        self.policy, self.critic = nn.Linear(3, 2), nn.Linear(3, 1)
        self.updates = updates
        self.weight_decay = weight_decay
        self.kl_controller = Controller()
        self.made: dict[int, Columns] = {}
        self.exports: list[str] = []
        self.val_kl, self.val_score = 0.0, 0.0

    def rollout(self) -> Columns:
        epoch = self.trainer.current_epoch
        return self.made.get(epoch, made_up(seed=10 * epoch + self.global_rank))

    def train_dataloader(self) -> Rollouts:
        return Rollouts(self)

    def val_dataloader(self) -> Tensor:
        return torch.zeros(2, 1)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        hooks.emit_validation(self.trainer, self, made_up(rows=3, seed=batch_idx))
        self.log_dict({"val/score": self.val_score, "val/kl": self.val_kl})

    def configure_optimizers(self) -> dict:
        groups = [
            {"params": self.policy.parameters(), "lr": 1e-2, "name": "policy"},
            {"params": self.critic.parameters(), "lr": 1e-2, "name": "critic"},
        ]
        optimizer = torch.optim.AdamW(groups, weight_decay=self.weight_decay)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)}

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.policy(batch).square().mean() + self.critic(batch).square().mean()
        self.manual_backward(loss)
        optimizer.step()
        self.lr_schedulers().step()
        self.log("loss/value", loss.detach())

    def export(self, path: Path) -> None:
        self.exports.append(Path(path).name)


def fit(module: StandIn, callbacks: list, tmp_path: Path, *, epochs: int = 3, ckpt: str | None = None, **kwargs):
    """A short run on one CPU; returns the trainer."""
    defaults = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    options = {**defaults, "enable_progress_bar": False, "enable_model_summary": False, **kwargs}
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=callbacks,
        default_root_dir=str(tmp_path),
        log_every_n_steps=1,
        **options,
    )
    trainer.fit(module, ckpt_path=ckpt)
    return trainer
