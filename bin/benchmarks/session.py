"""A measured fit: the quiet trainer that all benchmarks share, the peak of its memory, and what every report says."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch

from benchmarks.shapes import MemoryPeak, resident_mib, versions

PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {"fp32": "32-true", "bf16-mixed": "bf16-mixed"}
LOW = {"fp32": torch.float32, "bf16-mixed": torch.bfloat16}
"""What the products are computed in."""


def fit(
    module: L.LightningModule,
    data: L.LightningDataModule,
    options: argparse.Namespace,
    folder: Path,
    *,
    callback: L.Callback,
    memory: MemoryPeak,
    **trainer: Any,
) -> dict[str, int]:
    """Train with nothing but ``callback`` around the module; memory before and at its peak, in MiB.

    Args:
        module: What trains.
        data: What it trains on.
        options: The command line.
        folder: Scratch folder.
        callback: The benchmark's own, which times.
        memory: The sampler of memory, started here.
        trainer: Length of the run, and whatever differs from one CPU device.
    """
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lit_rlhf"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    runner = L.Trainer(
        **{"accelerator": "cpu", "devices": 1, **trainer},
        precision=PRECISIONS[options.precision],
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    before = resident_mib()
    memory.start()
    runner.fit(module, data)
    return {"memory_before_mib": round(before), "memory_peak_mib": round(memory.stop())}


def heading(options: argparse.Namespace) -> dict[str, Any]:
    """What every report begins with."""
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    return {"lib": "lit_rlhf", "versions": versions(), "options": shown}
