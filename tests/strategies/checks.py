"""What every strategy is put through, once a launch; the tests read the results.

Run inside the ranks, so nothing here asserts: a failed assertion on one rank would only stall the others.
"""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import lightning as L
import torch

from lit_rlhf.strategies.checkpoint_io import latest_checkpoint, safe_load
from tests.strategies.toy import STEPS, SaveAt, Toy, ToyLoader, fingerprint, fit, trainer

CLIP = 2.5  # under the first gradient norm of the toy, so that clipping is active

EQUALITY = {
    "clipped": {"max_norm": CLIP},
    "unclipped": {"max_norm": None},
    "accumulated": {"max_norm": CLIP, "micro_rows": 3},
    "adamw": {"optimizer": "adamw", "max_norm": CLIP},
}


def equality(strategy: Any, folder: Path, devices: int) -> dict[str, Any]:
    """Four steps of each variant; over ranks the rows are split, alone they are whole."""
    return {name: fit(strategy, folder, devices=devices, module=Toy(**kw)) for name, kw in EQUALITY.items()}


def resume(strategy: Any, folder: Path, devices: int, **options: Any) -> dict[str, Any]:
    """Two epochs straight; and stopped after ``step`` steps, then resumed in a new module and trainer."""

    def module() -> Toy:
        return Toy(optimizer="adamw", micro_rows=3, noise=True)

    common = {"devices": devices, "epochs": 2, **options}
    out = {"straight": fit(strategy, folder, module=module(), **common)["hash"]}
    for name, step in (("boundary", STEPS), ("middle", STEPS + 1)):
        path = folder / f"{name}.ckpt"
        stopped = fit(strategy, folder, module=module(), callbacks=[SaveAt(path, step, stop=True)], **common)
        resumed = fit(strategy, folder, module=module(), ckpt_path=str(path), **common)
        out[name] = {"stopped_at": stopped["step"], "hash": resumed["hash"], "step": resumed["step"]}
    out["dtypes"] = resumed["dtypes"]
    return out


def messages(strategy: Any, folder: Path, devices: int, **faults: dict[str, Any]) -> dict[str, str]:
    """The error each fault ends in, the same on every rank."""
    return {name: error_of(lambda kw=kw: fit(strategy, folder, devices=devices, **kw)) for name, kw in faults.items()}


def error_of(call: Any) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


class FullDisk(L.Callback):
    """Save once with room, once over the same name without room on the last rank, and look at what is left."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == 1:
            trainer.save_checkpoint(self.path)
            self.seen["hash"] = fingerprint(pl_module)
        if trainer.global_step == 2:
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            if trainer.global_rank == trainer.world_size - 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (512, limits[1]))
            try:
                self.seen["error"] = error_of(lambda: trainer.save_checkpoint(self.path))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            self.seen["files"] = sorted(p.name for p in self.path.parent.iterdir())


def full_disk(strategy: Any, folder: Path, devices: int) -> dict[str, Any]:
    """After the failed save the earlier checkpoint still loads, and the run goes on."""
    path = folder / "full" / "last.ckpt"
    watch = FullDisk(path)
    whole = fit(strategy, folder, devices=devices, module=Toy(optimizer="adamw"), callbacks=[watch])
    resumed = fit(strategy, folder, devices=devices, module=Toy(optimizer="adamw"), ckpt_path=str(path))
    same = {"run_hash": whole["hash"], "resumed_hash": resumed["hash"], "steps": whole["step"]}
    return {**watch.seen, **same, "latest": str(latest_checkpoint(path.parent))}


def validate(strategy: Any, folder: Path, devices: int, ckpt_path: str | None = None) -> float:
    t = trainer(strategy, folder, devices=devices)
    return t.validate(Toy(), ToyLoader(), ckpt_path=ckpt_path, verbose=False)[0]["val/loss"]


class Evil:
    """Unpickles into a call."""

    def __reduce__(self) -> Any:
        return (print, ("CODE RAN",))


def plant_code(path: Path) -> None:
    """Put a pickle that would execute code into the first file of the checkpoint ``path``."""
    file = path if path.is_file() else next((path / "checkpoint").glob("*model_states.pt"))
    content = torch.load(file, weights_only=False)
    torch.save({**content, "evil": Evil()}, file)


def code_refused(path: Path) -> str:
    plant_code(path)
    return error_of(lambda: safe_load(path))
