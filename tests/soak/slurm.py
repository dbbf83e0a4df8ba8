"""A run under a real SLURM of one node: signalled, requeued by itself, and compared with an undisturbed one.

    python -m tests.soak.slurm                # three requeues: start-up, rollout, update
    python -m tests.soak.slurm --time-limit   # the signal that SLURM itself sends before the time is over

Needs root and Debian's `slurm-wlm` and `munge`; listens on the loopback address alone. Two tasks, DDP. Exit code 1 if
the run ends with other weights or files, or does not come back.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.distributed_harness import clean_environment
from tests.soak import phases
from tests.soak.kills import ROOT, Trial, checkpoints, weights

TOOLS = ("sbatch", "slurmctld", "munged")
MOMENTS = ("start-up", "rollout", "update")
PATIENCE = 240.0
"""Seconds that any step may take. A requeued job waits until its old credentials expire: 40 s in tests/slurm/one-node,
two minutes by default."""


def main() -> None:
    """Run, requeue, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-limit", action="store_true")
    parser.add_argument("--epochs", type=int, help="iterations (default: 6; 200 with --time-limit, to outlast it)")
    parser.add_argument("--out", type=Path, default=Path("runs/slurm"))
    args = parser.parse_args()
    if needed():
        sys.exit(f"needs {needed()}")
    epochs = args.epochs or (200 if args.time_limit else 6)
    trial = Trial(args.out.resolve() / "runs", "ddp", epochs, signal.SIGUSR1, random.Random(0))
    expected, files = trial.undisturbed()
    with cluster(args.out.resolve() / "cluster"):
        job = Job(
            trial.new_run("slurm"), ["--time", "3:00", "--grace", "60"] if args.time_limit else ["--time", "1:00:00"]
        )
        for restarts, moment in enumerate(("time limit",) if args.time_limit else MOMENTS):
            job.reach(moment, restarts)
            if moment != "time limit":
                job.signal()
            job.wait(lambda: job.restarts() > restarts, f"no requeue after the signal in {moment}")  # noqa: B023
            print(f"signalled in {moment}, requeued; left: {checkpoints(job.run)}", flush=True)
        job.wait(job.ended, "the job does not end", patience=4 * PATIENCE)  # a slow machine meets its time limit again
        print(job.output(), flush=True)
        found, left, restarts = weights(job.run), checkpoints(job.run), job.restarts()
    right = job.state_seen == "COMPLETED" and found == expected and left == files
    verdict = "as undisturbed" if right else f"WRONG, {expected}, {files}"
    print(f"{job.state_seen} after {restarts} requeues: weights {found}, {left}: {verdict}")
    sys.exit(0 if right else 1)


def needed() -> str:
    """What this machine lacks for a SLURM of its own; empty where it lacks nothing."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    return ", ".join([*missing, *([] if os.geteuid() == 0 else ["root"])])


class Job:
    """A run submitted by bin/launch-slurm.

    Args:
        run: Its folder, with the config.
        options: Of bin/launch-slurm.
    """

    def __init__(self, run: Path, options: list[str]) -> None:
        self.run, self.state_seen = run, ""
        launch = ["bash", str(ROOT / "bin" / "launch-slurm"), "--cpu", "--devices", "2", *options, "--"]
        told = call([*launch, "fit", "--config", str(run / "kill.yaml")], cwd=run)
        self.id = re.findall(r"\d+", told)[-1]

    def show(self) -> str:
        """What SLURM says of the job."""
        return call(["scontrol", "show", "job", self.id])

    def state(self) -> str:
        """RUNNING, PENDING, ..."""
        self.state_seen = re.findall(r"JobState=(\w+)", self.show())[0]
        return self.state_seen

    def restarts(self) -> int:
        """How often it was requeued."""
        return int(re.findall(r"Restarts=(\d+)", self.show())[0])

    def signal(self) -> None:
        """SIGUSR1 to all tasks, as SLURM sends it before the time limit."""
        (self.run / "phase").unlink(missing_ok=True)
        call(["scancel", "--signal=USR1", self.id])

    def reach(self, moment: str, restarts: int) -> None:
        """Wait until the job runs (again) and has come to ``moment``."""
        self.wait(lambda: self.state() == "RUNNING" and self.restarts() == restarts, "the job does not run")
        if moment == "start-up":
            self.wait(lambda: "StepId" in call(["scontrol", "show", "steps", self.id]), "no task starts")
            time.sleep(1)
        elif moment in MOMENTS:
            self.wait(lambda: phases.read(self.run / "phase")[1] == moment, f"no {moment} comes")

    def ended(self) -> bool:
        """Whether it is over for good."""
        return self.state() in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY")

    def wait(self, condition: Callable[[], bool], problem: str, *, patience: float = PATIENCE) -> None:
        """Look again and again, for a limited time."""
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                sys.exit(f"{problem}:\n{self.show()}\n{self.output()}")
            time.sleep(0.2)

    def output(self) -> str:
        """The job's log."""
        return "".join(path.read_text(encoding="utf-8") for path in self.run.glob("lit-rlhf-*.log"))


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A SLURM of one node while the block runs."""
    script = str(ROOT / "tests" / "slurm" / "one-node")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["bash", script, "start", str(folder)], check=True, stdout=subprocess.DEVNULL)
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        yield
    finally:
        subprocess.run(["scancel", "--state=RUNNING", "--quiet", "--name=lit-rlhf"], check=False)
        subprocess.run(["bash", script, "stop", str(folder)], check=False)


def call(command: list[str], cwd: Path | None = None) -> str:
    """Output of a command that must work; this Python comes first in its PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**clean_environment(), "PATH": path}
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd, env=env).stdout


if __name__ == "__main__":
    main()
