"""A PPO-shaped module small enough to compare in full: two sub-modules, ONE optimizer with two named groups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from lit_rlhf.distributed import all_gather_object, all_reduce_max, all_reduce_sum, rank, world_size
from lit_rlhf.strategies.accumulation import accumulate, clipped_step, configure_clipping
from lit_rlhf.strategies.errors import require_training_state
from lit_rlhf.types import Columns, DeviceBatch

VOCABULARY, HIDDEN, ROWS, LENGTH, STEPS = 17, 8, 8, 6, 4


@dataclass(frozen=True, kw_only=True)
class ToyBatch(Columns):
    ids: Tensor
    mask: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    returns: Tensor


def whole_minibatch(step: int) -> ToyBatch:
    """The global minibatch of ``step``: rows of different lengths, so that ranks hold different token counts."""
    g = torch.Generator().manual_seed(1000 + step)
    lengths = torch.randint(2, LENGTH + 1, (ROWS,), generator=g)
    shape = (ROWS, LENGTH)
    return ToyBatch(
        ids=torch.randint(0, VOCABULARY, shape, generator=g),
        mask=torch.arange(LENGTH) < lengths[:, None],
        old_logprobs=torch.randn(shape, generator=g) * 0.3 - 3.0,
        advantages=torch.randn(shape, generator=g) * 5,
        returns=torch.randn(shape, generator=g) * 5,
    )


class ToyLoader:
    """Sized, lazy and Stateful, as the library's own loaders are."""

    def __init__(self, steps: int = STEPS) -> None:
        self.steps, self.epoch, self.position = steps, 0, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[DeviceBatch[ToyBatch]]:
        # Lightning stops at the length and never runs a generator to its end, so the turn is made at the next start.
        if self.position == self.steps:
            self.epoch, self.position = self.epoch + 1, 0
        while self.position < self.steps:
            batch = whole_minibatch(self.epoch * self.steps + self.position)
            self.position += 1
            yield DeviceBatch(batch.rows(torch.arange(ROWS)[rank() :: world_size()]))

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


class Toy(L.LightningModule):
    """pg + vf + ptx in one backward a micro-batch; ``micro_rows`` rows in each, more of them on rank 1."""

    def __init__(
        self,
        *,
        optimizer: str = "sgd",
        max_norm: float | None = 0.05,
        micro_rows: int = ROWS,
        noise: bool = False,
        fault: str = "",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.optimizer_name, self.max_norm, self.micro_rows = optimizer, max_norm, micro_rows
        self.noise, self.fault = noise, fault
        self.norms: list[float] = []
        self.dtypes: set[str] = set()
        self.rng: Tensor | None = None
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.policy = nn.Sequential(nn.Embedding(VOCABULARY, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, VOCABULARY))
            self.critic = nn.Sequential(nn.Embedding(VOCABULARY, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))

    def configure_optimizers(self) -> Any:
        configure_clipping(self.trainer, self.max_norm)
        groups = [
            {"params": list(self.policy.parameters()), "lr": 0.5, "name": "policy"},
            {"params": list(self.critic.parameters()), "lr": 0.3, "name": "critic"},
        ]
        if self.optimizer_name == "sgd":
            optimizer: torch.optim.Optimizer = torch.optim.SGD(groups)
        else:
            for group in groups:
                group["lr"] *= 0.02
            optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
        schedule = LambdaLR(optimizer, [lambda step: 1 / (1 + step), lambda step: 0.9**step])
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def loss_sum(self, batch: ToyBatch) -> Tensor:
        logits = self.policy(batch.ids).float()
        logprobs = logits.log_softmax(-1).gather(-1, batch.ids.roll(-1, 1)[..., None]).squeeze(-1)
        values = self.critic(batch.ids).squeeze(-1).float()
        ratio = (logprobs - batch.old_logprobs).exp()
        pg = torch.maximum(-ratio * batch.advantages, -ratio.clamp(0.8, 1.2) * batch.advantages)
        if self.noise:
            pg = pg * (1 + 0.1 * torch.randn_like(pg))
        return ((pg + 0.5 * (values - batch.returns) ** 2 - 0.3 * logprobs) * batch.mask).sum()

    def training_step(self, batch: DeviceBatch[ToyBatch], batch_idx: int) -> None:
        content = batch.content
        self.dtypes.add(str(content.advantages.dtype))
        tokens = all_reduce_sum(content.mask.sum())
        # Rank 1 cuts finer than rank 0: the number of micro-batches differs between ranks.
        rows = max(1, self.micro_rows - rank())
        micro = [content.rows(part) for part in torch.arange(len(content)).split(rows)]
        count = int(all_reduce_max(torch.tensor(len(micro), device=self.device)))
        if self.fault == "two_backwards":
            self.manual_backward(self.loss_sum(content))
        for i in range(count):
            weight = world_size() / tokens if i < len(micro) else 0.0
            with accumulate(self.trainer, i == count - 1 and self.fault != "no_last"):
                self.manual_backward(self.loss_sum(micro[i % len(micro)]) * weight)
        optimizer = self.optimizers()
        self.norms.append(float(clipped_step(self.trainer, optimizer, self.max_norm)))
        self.lr_schedulers().step()

    def validation_step(self, batch: DeviceBatch[ToyBatch], batch_idx: int) -> None:
        self.log("val/loss", self.loss_sum(batch.content) / batch.content.mask.sum(), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng"] = all_gather_object(torch.get_rng_state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trainer.training or self.trainer.state.fn == "fit":
            require_training_state(checkpoint, world_size=self.trainer.world_size)
            self.rng = checkpoint["rng"][self.global_rank]

    def on_train_start(self) -> None:
        torch.manual_seed(7 + self.global_rank)
        if self.rng is not None:
            torch.set_rng_state(self.rng)


class SaveAt(L.Callback):
    """Save to ``path`` after optimizer step ``step``, and stop there if asked to."""

    def __init__(self, path: Path | str, step: int, *, stop: bool = False) -> None:
        self.path, self.step, self.stop = str(path), step, stop

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = trainer.should_stop or self.stop


def trainer(strategy: Any, folder: Path | str, *, devices: int = 1, epochs: int = 1, **options: Any) -> L.Trainer:
    from lit_rlhf.strategies import AtomicCheckpointIO

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    plugins = [AtomicCheckpointIO()]
    return L.Trainer(
        accelerator="cpu",
        devices=devices,
        # An instance belongs to one trainer, so options come as a function that makes one.
        strategy=strategy() if callable(strategy) else strategy,
        default_root_dir=str(folder),
        max_epochs=epochs,
        plugins=plugins,
        enable_checkpointing=False,
        **{**quiet, **options},
    )


def weights(module: L.LightningModule) -> list[float]:
    return torch.cat([p.detach().float().flatten() for p in module.parameters()]).tolist()


def fingerprint(module: L.LightningModule) -> str:
    digest = hashlib.sha256()
    for p in module.parameters():
        digest.update(p.detach().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def fit(
    strategy: Any, folder: Path | str, *, module: Toy, ckpt_path: str | None = None, **options: Any
) -> dict[str, Any]:
    """One fit, and what there is to compare of it."""
    t = trainer(strategy, folder, **options)
    t.fit(module, ToyLoader(), ckpt_path=ckpt_path)
    return {
        "weights": weights(module),
        "hash": fingerprint(module),
        "norms": module.norms,
        "step": t.global_step,
        "dtypes": sorted(module.dtypes),
    }
