"""Clocks: of a kernel, of what the hardware reaches, of a PPO iteration and the memory of its phases."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch


def seconds(work: Callable[[], Any], device: torch.device, *, repeats: int = 5) -> float:
    """Median wall time of ``work()`` after a first call that warms up; the device is waited for."""
    times = []
    for _ in range(repeats + 1):
        wait(device)
        started = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bandwidth(device: torch.device, *, tiny: bool) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.zeros(2**22 if tiny else 2**28, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.itemsize / seconds(lambda: target.copy_(source), device)


def product_rate(device: torch.device, dtype: torch.dtype, *, tiny: bool) -> float:
    """Floating-point operations a second of a square product."""
    size = 256 if tiny else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / seconds(lambda: a @ b, device)


class Iterations(L.Callback):
    """Seconds of every iteration's phases, the memory that each phase took at most, and the first ratios' drift."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.peaks: dict[str, int] = {}
        self.drift = 0.0
        self._phase, self._started = "", 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """An iteration begins."""
        self._started = time.perf_counter()

    def on_phase(self, trainer: L.Trainer, module: L.LightningModule, phase: str) -> None:
        """The phase before has ended: what did it take?"""
        self._note_peak(module.device)
        self._phase = phase

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Keep the drift of the first update."""
        found = trainer.callback_metrics.get("update/ratio_drift")
        self.drift = max(self.drift, 0.0 if found is None else float(found))

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Close the iteration's row."""
        wait(module.device)
        self._note_peak(module.device)
        self._phase = ""
        names = ("rollout", "scoring", "update")
        row = {name: float(trainer.callback_metrics[f"time/{name}"]) for name in names}
        self.rows.append({**row, "total": time.perf_counter() - self._started})

    def seconds(self) -> dict[str, float]:
        """Medians over the iterations after the first."""
        kept = self.rows[1:] or self.rows
        return {name: statistics.median(row[name] for row in kept) for name in kept[0]}

    def _note_peak(self, device: torch.device) -> None:
        if device.type != "cuda":
            return
        if self._phase:
            self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
