"""bin/quickstart: an environment, then `lit-rlhf pocket run`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

QUICKSTART = Path(__file__).resolve().parents[2] / "bin" / "quickstart"

# An environment whose `python` writes down what it is asked for: nothing is installed and nothing trains.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *"print(sys.prefix)"*) echo "$VIRTUAL_ENV" ;;
  *) echo "$*" >> "$VIRTUAL_ENV/asked" ;;
esac
"""


def test_the_script_installs_once_and_hands_its_options_on(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    env = {**os.environ, "VIRTUAL_ENV": str(tmp_path), "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def quickstart(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(QUICKSTART), *words], env=env, capture_output=True, text=True, check=False, timeout=60
        )

    assert quickstart("--seed", "3").returncode == 0
    assert quickstart("--runs", "elsewhere").returncode == 0
    asked = (tmp_path / "asked").read_text().splitlines()
    assert sum("pip install" in line and line.endswith("-e .[dev]") for line in asked) == 1
    started = [line for line in asked if "lit_rlhf" in line]
    assert started == ["-m lit_rlhf pocket run --seed 3", "-m lit_rlhf pocket run --runs elsewhere"]
    assert "bash bin/quickstart [--runs DIR] [--seed N] [--epochs N]" in quickstart("--help").stdout
    assert (tmp_path / "asked").read_text().splitlines() == asked, "help needs no environment"


def test_its_exit_code_is_the_commands(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(PYTHON + '[ "${5:-}" != --bad ] || exit 2\n')
    python.chmod(0o755)
    env = {**os.environ, "VIRTUAL_ENV": str(tmp_path), "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for words, code in ((["--good"], 0), (["--bad"], 2)):
        done = subprocess.run(["bash", str(QUICKSTART), *words], env=env, capture_output=True, check=False, timeout=60)
        assert done.returncode == code
