"""Kill or signal a PPO run again and again, resume it, and compare its weights with those of an undisturbed run.

    python -m tests.soak.kills                                    # 20 SIGKILLs of a run on one process
    python -m tests.soak.kills --strategy deepspeed_stage_2_cpu   # two processes under ZeRO-2
    python -m tests.soak.kills --strategy ddp --signal SIGTERM --times 5

They take turns at four places: in a rollout, in an update, inside the write of a checkpoint, and during start-up. Where
one hit is told from what the run was doing then, not from what was aimed at. SIGKILL goes to all processes of the run;
another signal to the first one and to all by turns, and the run must end by itself with exit code 128 + signal. Each
start is `lit-rlhf fit ... --ckpt_path last`. A run that gets through to its end is compared and a new one is begun,
until all are spent. Exit code 1 if any finished run has other weights, or other files than an undisturbed one, if a
process outlives its run, or if no write was hit.
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
from typing import Any, Literal, cast

from tests.distributed_harness import clean_environment
from tests.soak import phases

ROOT = Path(__file__).resolve().parents[2]
Place = Literal["rollout", "update", "write", "start-up"]
TURNS: tuple[Place, ...] = ("rollout", "update", "write", "start-up")
MOST_TIMES = 6
"""A kill waits until its place has been passed up to so often in this start; a run has 6 rollouts and 24 updates."""
PATIENCE = 180.0
"""Seconds that a run may take to end after a signal."""

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
    - class_path: RunCheckpoint
      init_args: {{dirpath: {run}/checkpoints, every_n_steps: {every}}}
    - class_path: tests.soak.phases.Phases
      init_args: {{path: {run}/phase}}
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
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--signal", default="SIGKILL", choices=["SIGKILL", "SIGTERM", "SIGUSR1", "SIGUSR2"])
    parser.add_argument("--strategy", default="auto", choices=["auto", "ddp", "deepspeed_stage_2_cpu"])
    parser.add_argument("--epochs", type=int, default=6, help="iterations of a run, four optimizer steps each")
    parser.add_argument("--out", type=Path, default=Path("runs/kills"))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    number = signal.Signals[args.signal]
    trial = Trial(args.out / args.strategy, args.strategy, args.epochs, number, random.Random(args.seed))
    expected, files = trial.undisturbed()
    hit: Counter[str] = Counter()
    finished = wrong = 0
    while hit.total() < args.times:
        folder = trial.new_run(f"disturbed-{finished}")
        hit += trial.disturb(folder, args.times - hit.total(), done=hit.total())
        found, left = weights(folder), checkpoints(folder)
        right = found == expected and left == files
        finished, wrong = finished + 1, wrong + (not right)
        print(f"{folder.name} came to its end: weights {found}, {left}{'' if right else ', WRONG'}", flush=True)
    places = ", ".join(f"{count} in {place}" for place, count in hit.items())
    print(
        f"{hit.total()} times {args.signal} ({places}), {finished} run(s) finished, {wrong} with other weights or files"
    )
    sys.exit(1 if wrong or not hit["write"] else 0)


@dataclass
class Trial:
    """Runs of one strategy in one folder.

    Attributes:
        out: The folder; emptied first.
        strategy: Lightning's name.
        epochs: Iterations of a run.
        number: The signal.
        chance: Draws the moments.
        startup: Seconds from start to the first phase, of the undisturbed run.
        step: Seconds between two phases of it.
        sent: Signals sent so far.
    """

    out: Path
    strategy: str
    epochs: int
    number: signal.Signals
    chance: random.Random
    startup: float = field(init=False)
    step: float = field(init=False)
    sent: int = 0

    def __post_init__(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        make = [sys.executable, "-m", "lit_rlhf", "pocket", "make", str(self.out / "data")]
        subprocess.run(make, check=True, env=clean_environment(), stdout=subprocess.DEVNULL)

    def new_run(self, name: str) -> Path:
        """A folder with a config."""
        folder = self.out / name
        folder.mkdir(parents=True)
        text = CONFIG.format(
            run=folder.resolve(),
            data=(self.out / "data").resolve(),
            devices=1 if self.strategy == "auto" else 2,
            strategy=self.strategy,
            epochs=self.epochs,
            # A kill loses what came after the last checkpoint, a signal nothing: there it is to be seen.
            every=1 if self.number == signal.SIGKILL else 3,
        )
        (folder / "kill.yaml").write_text(text, encoding="utf-8")
        return folder

    def undisturbed(self) -> tuple[str, list[str]]:
        """A run that nobody kills: its weights and files, and how long its parts take."""
        begun = time.monotonic()
        start = Start(self.new_run("undisturbed"))
        start.until(lambda: start.phase()[0] > 0)
        self.startup = time.monotonic() - begun
        start.finish()
        self.step = (time.monotonic() - begun - self.startup) / max(1, start.phase()[0])
        found, left = weights(start.run), checkpoints(start.run)
        print(f"undisturbed: {self.startup:.1f} s of start-up, {self.step:.2f} s a phase, weights {found}, {left}")
        return found, left

    def disturb(self, run: Path, most: int, *, done: int) -> Counter[str]:
        """Start and kill ``run`` until it gets through or ``most`` kills are spent; where they hit."""
        hit: Counter[str] = Counter()
        while True:
            start = Start(run)
            place = TURNS[(done + hit.total()) % len(TURNS)]
            found = self.strike(start, place) if hit.total() < most else None
            if found is None:  # it was through before the moment came
                start.finish()
                return hit
            hit[found] += 1
            left = ", ".join(checkpoints(run)) or "nothing"
            print(f"{done + hit.total()}: in {found} (aimed at: {place}); left: {left}", flush=True)

    def strike(self, start: Start, place: Place) -> Place | None:
        """Wait for the moment, then kill or signal; where that was, or None if the run had ended by then."""
        if place == "start-up":
            start.sleep(self.chance.uniform(0.0, self.startup))
        elif place == "write":
            for _ in range(self.chance.randrange(MOST_TIMES)):
                start.until(start.watch.writing)
                start.until(lambda: not start.watch.writing())
            start.until(start.watch.writing)
        else:
            for _ in range(1 + self.chance.randrange(MOST_TIMES)):
                seen = start.phase()[0]
                start.until(lambda: start.phase()[0] > seen and start.phase()[1] == place)  # noqa: B023  awaited here
            start.sleep(self.chance.uniform(0.0, self.step))
        self.sent += 1
        if self.number == signal.SIGKILL:
            return start.kill()
        return start.end(self.number, all_of_it=self.sent % 2 == 0)


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
        (run / "phase").unlink(missing_ok=True)
        command = [sys.executable, "-m", "lit_rlhf", "fit", "--config", str(run / "kill.yaml"), "--ckpt_path", "last"]
        with (run / "output.log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=clean_environment()
            )

    def until(self, condition: Callable[[], bool]) -> None:
        """Return once ``condition`` holds, or the run has ended."""
        while self.process.poll() is None and not condition():
            time.sleep(0.001)

    def sleep(self, seconds: float) -> None:
        """Wait, at most until the run has ended."""
        deadline = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= deadline)

    def phase(self) -> tuple[int, str]:
        """Number and name of what the run is doing."""
        return phases.read(self.run / "phase")

    def place(self) -> Place:
        """Where the run is now."""
        if self.watch.writing():
            return "write"
        found: Any = self.phase()[1]
        return cast(Place, found)

    def kill(self) -> Place | None:
        """Kill the whole group; where that hit. None if the run had ended."""
        if self.process.poll() is not None:
            return None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.gone(5)
        return self.place()  # nobody is left to finish a write

    def end(self, number: signal.Signals, *, all_of_it: bool) -> Place | None:
        """Signal the first process or the whole group, and see the run end by itself; where that hit."""
        hit = self.place()
        if self.process.poll() is not None:
            return None
        (os.killpg if all_of_it else os.kill)(self.process.pid, number)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            sys.exit(f"the run hangs {PATIENCE:.0f} s after {number.name} in {hit}; {self.run}/output.log")
        self.gone(10)
        if code == 0:  # it had nothing left to do
            return None
        if code not in (128 + number, -number):
            sys.exit(f"exit code {code} after {number.name} in {hit}; {self.run}/output.log says why")
        if code == -number and hit != "start-up":
            sys.exit(f"the run died of {number.name} in {hit}")
        return hit

    def gone(self, seconds: float) -> None:
        """Wait for the last process of the group."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
        sys.exit("a process outlived its run")

    def finish(self) -> None:
        """Wait for the end of a run that nobody kills."""
        if self.process.wait() != 0:
            sys.exit(f"a run failed with exit code {self.process.returncode}; {self.run}/output.log says why")


def checkpoints(run: Path) -> list[str]:
    """The names in the folder of checkpoints."""
    return sorted(path.name for path in run.glob("checkpoints/*"))


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
