"""Kill a PPO run with SIGKILL again and again, resume it, and compare its weights with those of an undisturbed run.

    python -m tests.soak.kills                                    # 20 kills of a run on one process
    python -m tests.soak.kills --strategy deepspeed_stage_2_cpu   # two processes under ZeRO-2
    python -m tests.soak.kills --strategy ddp --kills 5

Kills take turns at three places: inside the write of a checkpoint (every other one), between two writes (rollout,
update or evaluation), and during start-up. The run saves after every optimizer step, so kills fall into the middle of
iterations as well. Where a kill hit is told from what it left, not from what was aimed at. Each start is
`lit-rlhf fit ... --ckpt_path last`. A run that gets through to its end is compared and a new one is begun, until all
kills are spent. Exit code 1 if any finished run has other weights, if a process outlives its run, or if no kill hit a
write.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[2]
Place = Literal["inside a write", "between writes", "start-up"]
TURNS: tuple[Place, ...] = ("inside a write", "between writes", "inside a write", "start-up")
MOST_WRITES = 8
"""A kill waits for up to as many writes of its start; a run has 24."""

CONFIG = """\
trainer:
  max_epochs: {epochs}
  accelerator: cpu
  devices: {devices}
  strategy: {strategy}
  enable_progress_bar: false
  logger: false
  limit_val_batches: 0
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {{dirpath: {run}/checkpoints, save_last: link, every_n_train_steps: 1, save_top_k: 1}}
    - class_path: ExportCallback
      init_args: {{final: false}}
  default_root_dir: {run}
model:
  class_path: PPOModule
  init_args:
    policy: {data}/base
    critic: {{init: policy}}
    reward:
      class_path: PythonReward
      init_args: {{function: "lit_rlhf.pocket.gold:gold_reward"}}
    sampling: {{max_response_length: 16}}
    optimizer: {{lr: 1.0e-3, critic_lr: 1.0e-3}}
    schedule: {{kind: constant, warmup: 0}}
data:
  class_path: RolloutDataModule
  init_args:
    train: {data}/prompts_train.jsonl
    rollout_batch_size: 16
    minibatch_size: 8
    ppo_epochs: 2
    max_prompt_length: 64
"""


def main() -> None:
    """Spend the kills, compare what came to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--strategy", default="auto", choices=["auto", "ddp", "deepspeed_stage_2_cpu"])
    parser.add_argument("--epochs", type=int, default=6, help="iterations of a run, four optimizer steps each")
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    trial = Trial(args.out / args.strategy, args.strategy, args.epochs, random.Random(args.seed))
    expected = trial.undisturbed()
    hit: Counter[str] = Counter()
    finished = wrong = 0
    while hit.total() < args.kills:
        folder = trial.new_run(f"disturbed-{finished}")
        hit += trial.disturb(folder, args.kills - hit.total(), done=hit.total())
        found = weights(folder)
        finished, wrong = finished + 1, wrong + (found != expected)
        print(f"{folder.name} came to its end: weights {found}{'' if found == expected else ', WRONG'}", flush=True)
    places = ", ".join(f"{count} {place}" for place, count in hit.items())
    print(f"{hit.total()} kills ({places}), {finished} run(s) finished, {wrong} with other weights")
    sys.exit(1 if wrong or not hit["inside a write"] else 0)


@dataclass
class Trial:
    """Runs of one strategy in one folder.

    Attributes:
        out: The folder; emptied first.
        strategy: Lightning's name.
        epochs: Iterations of a run.
        chance: Draws the moments.
        startup: Seconds from start to the first write, of the undisturbed run.
        step: Seconds between two writes of it.
    """

    out: Path
    strategy: str
    epochs: int
    chance: random.Random
    startup: float = field(init=False)
    step: float = field(init=False)

    def __post_init__(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        make = [sys.executable, "-m", "lit_rlhf", "pocket", "make", str(self.out / "data")]
        subprocess.run(make, check=True, env=environment(), stdout=subprocess.DEVNULL)

    def new_run(self, name: str) -> Path:
        """A folder with a config."""
        folder = self.out / name
        folder.mkdir(parents=True)
        devices = 1 if self.strategy == "auto" else 2
        text = CONFIG.format(
            run=folder, data=self.out / "data", devices=devices, strategy=self.strategy, epochs=self.epochs
        )
        (folder / "kill.yaml").write_text(text, encoding="utf-8")
        return folder

    def undisturbed(self) -> str:
        """A run that nobody kills: its weights, and how long its parts take."""
        begun = time.monotonic()
        start = Start(self.new_run("undisturbed"))
        start.until(start.watch.writing)
        self.startup = time.monotonic() - begun
        start.finish()
        self.step = (time.monotonic() - begun - self.startup) / (4 * self.epochs)
        found = weights(start.run)
        print(f"undisturbed: {self.startup:.1f} s to the first write, {self.step:.2f} s a step, weights {found}")
        return found

    def disturb(self, run: Path, most: int, *, done: int) -> Counter[str]:
        """Start and kill ``run`` until it gets through or ``most`` kills are spent; where they hit."""
        hit: Counter[str] = Counter()
        while True:
            start = Start(run)
            place = TURNS[(done + hit.total()) % len(TURNS)]
            found = self.kill(start, place) if hit.total() < most else None
            if found is None:  # it was through before the moment came
                start.finish()
                return hit
            hit[found] += 1
            left = ", ".join(sorted(path.name for path in run.glob("checkpoints/*"))) or "nothing"
            print(f"kill {done + hit.total()}: {found} (aimed at: {place}); left: {left}", flush=True)

    def kill(self, start: Start, place: Place) -> Place | None:
        """Wait for the moment, then kill; where that was, or None if the run had ended by then."""
        if place == "start-up":
            start.sleep(self.chance.uniform(0.0, self.startup))
        else:
            for _ in range(self.chance.randrange(MOST_WRITES)):
                start.until(start.watch.writing)
                start.until(lambda: not start.watch.writing())
            start.until(start.watch.writing)
        if place == "between writes":
            start.until(lambda: not start.watch.writing())
            start.sleep(self.chance.uniform(0.0, self.step))
        return start.kill()


class Watch:
    """What is written into a folder of checkpoints from now on.

    A kill may have left a half-written file, which lies there until the same checkpoint is written again: it is no
    write of the next start, although one may well have its name.

    Args:
        folder: May come into being later.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before = self._now()

    def _now(self) -> set[tuple[str, int]]:
        """Names with the times of their last change: a file that is written anew keeps its name, not its time."""
        found = set()
        for path in self.folder.glob("*"):
            with suppress(FileNotFoundError):  # it was renamed in between
                found.add((path.name, path.lstat().st_ctime_ns))
        return found

    def written(self) -> set[str]:
        """What has been written, or is being written."""
        return {name for name, _ in self._now() - self.before}

    def writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(name.endswith(".tmp") for name in self.written())


class Start:
    """One start of a run, in a process group of its own.

    Args:
        run: Its folder.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.watch = Watch(run / "checkpoints")
        command = [sys.executable, "-m", "lit_rlhf", "fit", "--config", str(run / "kill.yaml"), "--ckpt_path", "last"]
        with (run / "output.log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment()
            )

    def until(self, condition: Callable[[], bool]) -> None:
        """Return once ``condition`` holds, or the run has ended."""
        while self.process.poll() is None and not condition():
            time.sleep(0.001)

    def sleep(self, seconds: float) -> None:
        """Wait, at most until the run has ended."""
        deadline = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= deadline)

    def kill(self) -> Place | None:
        """Kill the whole group; where that hit, told from what it left. None if the run had ended."""
        if self.process.poll() is not None:
            return None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for _ in range(100):
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
        else:
            sys.exit("a process outlived the kill of its group")
        if self.watch.writing():  # nobody is left to finish it
            return "inside a write"
        return "between writes" if self.watch.written() else "start-up"

    def finish(self) -> None:
        """Wait for the end of a run that nobody kills."""
        if self.process.wait() != 0:
            sys.exit(f"a run failed with exit code {self.process.returncode}; {self.run}/output.log says why")


def environment() -> dict[str, str]:
    """This checkout's package, one thread, no GPU."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def weights(run: Path) -> str:
    """Digest of all trained weights in the newest checkpoint."""
    import torch

    from lit_rlhf.strategies.checkpoint_io import latest_checkpoint

    path = latest_checkpoint(run / "checkpoints")
    if path is None:
        sys.exit(f"{run} has no checkpoint")
    file = path / "checkpoint" / "mp_rank_00_model_states.pt" if path.is_dir() else path
    content = torch.load(file, weights_only=True)
    state = content["module"] if path.is_dir() else content["state_dict"]
    # Not the file's name: a run that is resumed at its very end writes its last state as `last.ckpt`.
    digest = hashlib.sha256(str(content["global_step"]).encode())
    for name in sorted(state):
        digest.update(name.encode() + state[name].float().numpy().tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
