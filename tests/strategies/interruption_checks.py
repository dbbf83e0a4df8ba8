"""PPO runs that get a signal at a chosen moment, on a chosen rank, and go on from what they saved."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger

from lit_rlhf import signals
from lit_rlhf.callbacks.stop_on_signal import StopOnSignal
from lit_rlhf.datamodules.rollout import RolloutDataModule
from lit_rlhf.distributed import rank
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.strategies.checkpoint_io import AtomicCheckpointIO, latest_checkpoint
from tests.strategies import ppo_checks
from tests.strategies.toy import fingerprint

ITERATIONS, STEPS = 3, 4

# Moment of the signal: the place, and how many times the place has been passed before.
MOMENTS = (
    ("start-up", 0),
    ("rollout", 0),
    ("rollout", 1),
    ("scoring", 1),
    ("update", 0),
    ("update", STEPS),
    ("update", 2 * STEPS - 1),
    ("update", 3 * STEPS - 3),
    ("batch end", STEPS + 1),
    ("validation", 0),
    ("epoch end", 0),
    ("save", 1),
)


class Signalled(PPOModule):
    """Sends its process a signal when it passes a place for the n-th time."""

    moment: tuple[str, int] = ("", 0)
    who = 0
    number = signal.SIGTERM

    def passing(self, place: str) -> None:
        """Count, and signal."""
        self.passed = {**getattr(self, "passed", {})}
        count = self.passed[place] = self.passed.get(place, 0) + 1
        if (place, count - 1) == self.moment and rank() == self.who:
            os.kill(os.getpid(), self.number)

    def configure_model(self) -> None:
        self.passing("start-up")
        super().configure_model()

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        if self.trainer.training:
            self.passing("rollout")
        return super().generate(*args, **kwargs)

    def score_responses(self, *args: Any, **kwargs: Any) -> Any:
        if self.trainer.training:
            self.passing("scoring")
        return super().score_responses(*args, **kwargs)

    def optimize(self, losses: Any) -> Any:
        self.passing("update")
        return super().optimize(losses)

    def on_train_batch_end(self, *_: Any) -> None:
        self.passing("batch end")

    def validation_step(self, *args: Any, **kwargs: Any) -> None:
        self.passing("validation")
        super().validation_step(*args, **kwargs)

    def on_train_epoch_end(self) -> None:
        self.passing("epoch end")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.passing("save")
        super().on_save_checkpoint(checkpoint)


class Rows(Logger):
    """What is logged of each step and validation, with the loggers' step.

    Without the clock's numbers, and without the rollout's: Lightning repeats those at each step of the epoch they were
    logged in, and in a process that began in the middle of it does not.
    """

    name, version = "rows", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        told = ("loss/", "update/", "lr/", "val/")
        kept = {k: float(v) for k, v in metrics.items() if k.startswith(told) and k != "update/ratio_drift"}
        self.rows.append((int(step or 0), kept))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


def fit(
    world: Path, folder: Path, strategy: str, devices: int, *, moment: tuple[str, int], who: int = 0, **options: Any
) -> tuple[Signalled, Rows, int | None]:
    """One start of the run in ``folder``, from its newest checkpoint on; the exit code, None if it came to its end."""
    optimizer = ppo_checks.PPOOptimizerConfig(lr=1e-3, critic_lr=1e-3)
    module, _ = ppo_checks.build(world, Signalled, optimizer=optimizer)
    module.moment, module.who = moment, who
    prompts = str(world / "pocket" / "prompts_train.jsonl")
    sizes = {"rollout_batch_size": 16, "minibatch_size": 8, "ppo_epochs": 2, "micro_batch_tokens": 80}
    data = RolloutDataModule(train=prompts, val=prompts, eval_limit=8, eval_batch_size=4, max_prompt_length=32, **sizes)
    rows = Rows()
    defaults: dict[str, Any] = {
        "logger": rows,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "callbacks": [ModelCheckpoint(folder / "checkpoints", every_n_train_steps=3, save_last="link")],
    }
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        default_root_dir=str(folder),
        max_epochs=ITERATIONS,
        plugins=[] if "deepspeed" in strategy else [AtomicCheckpointIO()],
        **{**defaults, **options},
    )
    trainer.callbacks.append(StopOnSignal())  # type: ignore[attr-defined]
    code = None
    with signals.listening():
        try:
            trainer.fit(module, data, ckpt_path=latest_checkpoint(folder / "checkpoints"), weights_only=True)
        except SystemExit as ended:
            code = ended.code  # type: ignore[assignment]
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    return module, rows, code


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*") if not path.is_symlink())


def checks(world: Path, strategy: str, devices: int, out: Path) -> Iterator[dict[str, Any]]:
    """Each moment, on the last rank and (where there are two) every other moment on the first."""
    module, whole, _ = fit(world, out / "whole", strategy, devices, moment=("", 0))
    expected = fingerprint(module)
    for index, moment in enumerate(MOMENTS):
        folder = out / "-".join(map(str, moment))
        who = (index % 2) * (devices - 1)
        _, first, code = fit(world, folder, strategy, devices, moment=moment, who=who)
        saved = left_in(folder)
        module, second, after = fit(world, folder, strategy, devices, moment=("", 0))
        yield {
            " ".join(map(str, moment)): {
                "codes": [code, after],
                "weights": fingerprint(module) == expected,
                "rows": first.rows + second.rows == whole.rows,
                "done": len(first.rows) if rank() == 0 else None,  # rank 0 logs
                "saved": "interrupted.ckpt" in saved,
                "left": left_in(folder) == left_in(out / "whole"),
            }
        }
