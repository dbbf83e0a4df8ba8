"""One benchmark in a process of its own, and what several of them have in common."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from typing import Any


def call(command: list[str], threads: int) -> dict[str, Any]:
    """Run a command; the JSON object in the last line it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def spread(values: list[float], digits: int = 2) -> dict[str, float]:
    """Smallest, middle and largest."""
    numbers = {"min": min(values), "median": statistics.median(values), "max": max(values)}
    return {name: round(value, digits) for name, value in numbers.items()}
