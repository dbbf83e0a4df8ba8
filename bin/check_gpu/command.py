"""Options of `bin/check-gpu`, one process a row, the table and its JSON."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIMITS = {
    "device": 60,
    "invariants": 120,
    "device-tests": 120,
    "zero": 120,
    "liger": 90,
    "kernels": 60,
    "decode": 120,
    "ppo-1b": 120,
    "ppo-7b": 150,
    "vllm": 240,
    "trl": 120,
}
"""Rows in the order they run, and the seconds each may take."""
PATIENCE = {"cuda": 1.0, "cpu": 4.0}
"""A CPU, which may be busy with other things, gets so many times as long."""
NO_TIME = 5.0
"""A row is not begun with less than this left, in seconds."""

Result = dict[str, Any]
Start = Callable[[str, argparse.Namespace, Path], list[str]]
"""The command of a row, from its name, the options and the file its result goes to."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="bin/check-gpu", description="Everything there is to see on one GPU.")
    top.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    top.add_argument("--tiny", action="store_true", help="tiny models: the form of the table, not its numbers")
    names = list(LIMITS)
    top.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    top.add_argument("--budget", type=float, help="seconds for all rows together; 600 on a GPU")
    top.add_argument("--out", type=Path, default=Path("runs/check-gpu.json"), help="where the JSON goes")
    return top


def main(argv: list[str] | None = None) -> None:
    """Run the rows, print the table, write the JSON.

    Raises:
        SystemExit: 1 if a row is not well, 2 without a GPU.
    """
    options = parser().parse_args(argv)
    if options.budget is None:
        options.budget = 600.0 * PATIENCE[options.device]
    if options.device == "cuda" and not has_gpu():
        print("No GPU is visible. `bin/check-gpu --device cpu --tiny` shows the form of the table.", file=sys.stderr)
        raise SystemExit(2)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = run_rows(options, start=command_of)
    print(table(results))
    print(options.out)
    if any(result["status"] == "failed" for result in results):
        raise SystemExit(1)


def has_gpu() -> bool:
    """Whether torch sees a CUDA device; asked in another process, for this one must not hold any of its memory."""
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], env=environment("cuda"), check=False).returncode == 0


def run_rows(options: argparse.Namespace, *, start: Start) -> list[Result]:
    """All rows, one after the other; the JSON is written after each, so that a kill leaves what was measured."""
    deadline, results = time.monotonic() + options.budget, list[Result]()
    for name in options.rows:
        began = time.monotonic()
        limit = min(LIMITS[name] * PATIENCE[options.device], deadline - began)
        if limit < NO_TIME:
            result = failed(f"not begun: the budget of {options.budget:.0f} s is used up")
        else:
            print(f"{name} ...", file=sys.stderr, flush=True)
            result = run_row(name, options, limit, start=start)
        results.append({"row": name, "seconds": round(time.monotonic() - began, 1), **result})
        options.out.write_text(json.dumps({"device": options.device, "tiny": options.tiny, "rows": results}, indent=1))
    return results


def run_row(name: str, options: argparse.Namespace, limit: float, *, start: Start) -> Result:
    """One row in a process group of its own, which is ended with all it started when its time is up."""
    with tempfile.TemporaryDirectory(prefix="check_gpu_") as folder:
        file, log = Path(folder) / "result.json", Path(folder) / "log"
        with log.open("w") as output:
            process = subprocess.Popen(
                start(name, options, file), stdout=output, stderr=subprocess.STDOUT, cwd=ROOT,
                env=environment(options.device), start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                return failed(f"no end within {limit:.0f} s{last_words(log)}")
            finally:
                end_group(process)
        if not file.exists():
            return failed(f"exit code {code}{last_words(log)}")
        result: Result = json.loads(file.read_text())
        return result


def command_of(name: str, options: argparse.Namespace, file: Path) -> list[str]:
    """How a row is started."""
    tiny = ["--tiny"] if options.tiny else []
    earlier = ["--earlier", str(options.out.resolve())]
    row = [sys.executable, "-m", "check_gpu.rows", name, "--device", options.device, "--out", str(file)]
    return [*row, *tiny, *earlier]


def environment(device: str) -> dict[str, str]:
    """Of the rows: one GPU or none, no network, the library of this checkout."""
    paths = [str(ROOT / "bin"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CHECK_GPU_DEVICE": device,
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES") or "0" if device == "cuda" else "",
    }
    return {**os.environ, **own}


def end_group(process: subprocess.Popen[Any]) -> None:
    """End what is left of a row."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def failed(why: str) -> Result:
    """The result of a row that has none."""
    return {"status": "failed", "summary": why, "numbers": {}}


def last_words(log: Path) -> str:
    """The last line that says something of a row's output."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines else ""


def table(results: list[Result]) -> str:
    """Row, state, seconds, and what there is to say."""
    lines = [f"{'row':14} {'':8} {'s':>6}  what was seen"]
    for result in results:
        first, *more = result["summary"].splitlines() or [""]
        lines.append(f"{result['row']:14} {result['status']:8} {result['seconds']:6.1f}  {first}")
        lines += [f"{'':32}{line}" for line in more]
    return "\n".join(lines)
