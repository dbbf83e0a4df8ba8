"""Run a few lines of Python in several processes from pytest, and never leave one behind.

A launch costs seconds, a further fit inside it half a second: put many checks in one body and let tests read its
results.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
_SCRUBBED = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)

# A body is indented into `main`; each rank's `record(...)` calls end in its own JSON, also when the body fails.
_SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
RESULTS = {{}}
def record(**values):
    RESULTS.update(values)
def main():
{body}
if __name__ == "__main__":
    try:
        main()
    finally:
        rank = os.environ.get("LOCAL_RANK", "0")
        (Path({folder!r}) / f"rank{{rank}}.json").write_text(json.dumps(RESULTS))
"""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launch left: exit code, output of all ranks, one dict a rank, seconds, and whether a process lives on."""

    code: int
    output: str
    ranks: list[dict[str, Any]]
    seconds: float
    survivors: bool


def run_dist(
    body: str,
    tmp_path: Path,
    launcher: Literal["lightning", "torchrun"] = "lightning",
    *,
    processes: int = 2,
    timeout: float = 240,
    check: bool = True,
    env: dict[str, str] | None = None,
) -> Launch:
    """Run ``body`` (the inside of a function, with ``record`` and ``torch`` at hand) on ``processes`` ranks.

    With ``launcher="lightning"`` the body's own ``Trainer(devices=...)`` starts the other ranks, as a user's script
    would; with ``"torchrun"`` they all start together.
    """
    tmp_path.mkdir(parents=True, exist_ok=True)
    script = tmp_path / "body.py"
    script.write_text(_SCRIPT.format(body=textwrap.indent(textwrap.dedent(body), "    "), folder=str(tmp_path)))
    command = [sys.executable, str(script)]
    if launcher == "torchrun":
        flags = ["--standalone", f"--nproc_per_node={processes}", "--max_restarts=0"]
        command = [sys.executable, "-m", "torch.distributed.run", *flags, str(script)]
    started = time.monotonic()
    code, output, survivors = run_group(command, timeout=timeout, env=env)
    files = sorted(tmp_path.glob("rank*.json"))
    launch = Launch(
        code=code,
        output=output,
        ranks=[json.loads(f.read_text()) for f in files],
        seconds=time.monotonic() - started,
        survivors=survivors,
    )
    # The whole output: the failing rank's error stands before its peers' "connection closed", so a tail hides it.
    assert not check or code == 0, f"exit code {code}\n{output}"
    return launch


def run_group(command: list[str], *, timeout: float, env: dict[str, str] | None = None) -> tuple[int, str, bool]:
    """Run ``command`` in its own process group: exit code, output, and whether any of the group outlived it."""
    process = subprocess.Popen(
        command,
        env=clean_environment(env),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    survivors = False
    try:
        output, _ = process.communicate(timeout=timeout)
        survivors = group_alive(process.pid, patience=5)
    except subprocess.TimeoutExpired:
        kill_group(process.pid)
        output, _ = process.communicate()
        raise AssertionError(f"no end after {timeout} s\n{output}") from None
    finally:
        kill_group(process.pid)
    return process.returncode, output, survivors


def clean_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This environment without what a surrounding launcher set, without GPUs, one thread a process."""
    kept = {k: v for k, v in os.environ.items() if k not in _SCRUBBED}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    return {**kept, **own, "TOKENIZERS_PARALLELISM": "false", **(extra or {})}


def group_alive(group: int, *, patience: float = 0) -> bool:
    """Whether a process of ``group`` is (still, after ``patience`` seconds) there."""
    deadline = time.monotonic() + patience
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        if time.monotonic() >= deadline:
            return True
        time.sleep(0.1)


def kill_group(group: int) -> None:
    """SIGKILL what is left of ``group``."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
