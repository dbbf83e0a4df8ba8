"""The runs behind ``test_zero.py``: one tiny PPO, with and without ZeRO-2, on one device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from lit_rlhf.ppo.config import PPOOptimizerConfig, ReferenceConfig
from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer


class Steps(L.Callback):
    """The metrics of every step; saves after step 2, the end of the first iteration, where a path is given."""

    def __init__(self, save: str | None = None) -> None:
        self.save, self.rows = save, []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        row = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({**row, "step": trainer.global_step})
        if self.save and trainer.global_step == 2:
            trainer.save_checkpoint(self.save)


def fit(world: Path, out: Path, accelerator: str, strategy: str, precision: str, **options: Any) -> dict[str, Any]:
    """Two iterations; metrics, the number of steps, and a sum over all weights."""
    ckpt_path, steps = options.pop("ckpt_path", None), Steps(options.pop("save", None))
    module = make_ppo(
        world,
        optimizer=PPOOptimizerConfig(lr=1e-3, critic_lr=1e-3, eps=1e-3, max_grad_norm=0.5),
        reference=ReferenceConfig(dtype="bfloat16" if precision == "bf16-mixed" else "float32"),
    )
    trainer = make_trainer(
        out, accelerator=accelerator, strategy=strategy, precision=precision, callbacks=[steps], limit_val_batches=0
    )
    trainer.fit(module, make_data(world), ckpt_path=ckpt_path)
    total = sum(float(p.detach().double().abs().sum()) for p in module.parameters())
    return {"metrics": steps.rows, "steps": trainer.global_step, "sum": total}


def checks(world: Path, out: Path, accelerator: str) -> dict[str, Any]:
    """All runs by name."""
    names = {"cuda": ("lit_deepspeed_stage_2", "lit_deepspeed_stage_2_offload"), "cpu": ("deepspeed_stage_2_cpu",) * 2}
    zero, offload = names[accelerator]
    saved = str(out / "half.ckpt")
    return {
        "one": fit(world, out, accelerator, "auto", "32-true"),
        "zero": fit(world, out, accelerator, zero, "32-true"),
        "offload": fit(world, out, accelerator, offload, "32-true"),
        "bf16": fit(world, out, accelerator, zero, "bf16-mixed", save=saved),
        "resumed": fit(world, out, accelerator, zero, "bf16-mixed", ckpt_path=saved),
    }
