"""Train for long and watch memory, open files and threads: none may grow.

    python -m tests.soak.memory                   # 1,200 updates in 300 iterations, with loggers, samples, checkpoints
    python -m tests.soak.memory --iterations 40

Prints what the process held at ten moments. The first fifth is for caches to fill. Exit code 1 if the resident set
grows by more than 2 % from the median of the second fifth to that of the last, or if files or threads become more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import yaml

from tests.distributed_harness import clean_environment
from tests.soak.kills import CONFIG

MOST_GROWTH = 1.02


class Held(NamedTuple):
    """What a process holds.

    Attributes:
        iteration: When.
        resident: Megabytes (1e6 bytes) of memory.
        files: Open descriptors.
        threads: Of the system.
    """

    iteration: int
    resident: float
    files: int
    threads: int


class Meter(L.Callback):
    """Appends what rank 0 holds at every epoch's start to a file: past the work of the epoch before, logs included."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line."""
        if trainer.is_global_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(" ".join(map(str, held(trainer.current_epoch))) + "\n")


def held(iteration: int) -> Held:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    files, threads = (len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("fd", "task"))
    return Held(iteration, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, threads)


def read(path: Path) -> list[Held]:
    """What the meter has written."""
    words = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    return [Held(int(a), float(b), int(c), int(d)) for a, b, c, d in words]


def growth(series: Sequence[Held]) -> list[str]:
    """What grows in ``series``, of at least ten entries."""
    fifth = len(series) // 5
    early, late = series[fifth : 2 * fifth], series[-fifth:]
    before, after = (statistics.median(entry.resident for entry in part) for part in (early, late))
    found = [f"memory from {before:.1f} to {after:.1f} MB"] if after > MOST_GROWTH * before else []
    for name in ("files", "threads"):
        most, now = (max(getattr(entry, name) for entry in part) for part in (early, late))
        found += [f"{name} from {most} to {now}"] if now > most else []
    return found


def config(out: Path, iterations: int) -> dict[str, Any]:
    """The run of :mod:`tests.soak.kills` with everything that writes."""
    text = CONFIG.format(run=out, data=out / "data", devices=1, strategy="auto", epochs=iterations, every=100)
    content: dict[str, Any] = yaml.safe_load(text)
    trainer = content["trainer"]
    del trainer["logger"], trainer["limit_val_batches"]
    trainer |= {"check_val_every_n_epoch": 10, "num_sanity_val_steps": 0}
    content["data"]["init_args"] |= {"val": str(out / "data" / "prompts_val.jsonl"), "eval_limit": 8}
    trainer["callbacks"] = [
        *(c for c in trainer["callbacks"] if c["class_path"] == "RunCheckpoint"),
        {"class_path": "SampleLogger", "init_args": {"every_n_iterations": 5}},
        {"class_path": "RewardDistributionMonitor"},
        {"class_path": "tests.soak.memory.Meter", "init_args": {"path": str(out / "held")}},
    ]
    return content


def main() -> None:
    """Train, then look at what was held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=300, help="of four updates each; at least 10")
    parser.add_argument("--out", type=Path, default=Path("runs/memory"))
    args = parser.parse_args()
    out = args.out.resolve()
    program = [sys.executable, "-m", "lit_rlhf"]
    subprocess.run([*program, "pocket", "make", str(out / "data")], check=True, env=clean_environment())
    (out / "held").unlink(missing_ok=True)
    (out / "memory.yaml").write_text(yaml.safe_dump(config(out, args.iterations)), encoding="utf-8")
    subprocess.run([*program, "fit", "--config", str(out / "memory.yaml")], check=True, env=clean_environment())
    series = read(out / "held")
    for entry in series[:: max(1, len(series) // 10)]:
        print(
            f"iteration {entry.iteration}: {entry.resident:.1f} MB, {entry.files} files, {entry.threads} threads",
            flush=True,
        )
    print(f"{4 * len(series)} updates, {', '.join(growth(series)) or 'nothing grows'}")
    sys.exit(1 if growth(series) else 0)


if __name__ == "__main__":
    main()
