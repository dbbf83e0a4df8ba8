"""The stages of `pocket run`, each `lit-rlhf` command replaced by a stub that leaves what the command would leave."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_rlhf.commands.pocket_pipeline import joined_metrics

ROOT = Path(__file__).resolve().parents[2]
# Stands for the package in the commands that the pipeline starts.
STUB = """
import json, os, sys, time
from pathlib import Path
words = sys.argv[1:]
def after(name):
    return Path(words[words.index(name) + 1])
def touch(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
with Path("commands.jsonl").open("a") as file:
    file.write(json.dumps(words) + "\\n")
stage = after("--config").stem if words[0] == "fit" else words[0]
if stage == os.environ.get("STUB_FAILS"):
    while os.environ.get("STUB_HANGS") and not Path("hanging").exists():
        time.sleep(0.01)
    print("one line\\nthe reason")
    sys.exit(3)
if stage == os.environ.get("STUB_HANGS"):
    touch(Path("hanging"), str(os.getpid()))
    time.sleep(60)
if stage == "pocket":
    touch(Path(words[2]) / "base" / "config.json")
elif words[0] == "fit":
    run = after("--config").parent.parent / stage
    assert "runs/pocket" not in after("--config").read_text()
    touch(run / "csv" / "version_0" / "metrics.csv", "step,val/score\\n1,0.5\\n")
    touch(run / "export" / "final" / "config.json")
elif stage == "test":
    touch(after("--trainer.default_root_dir") / "evaluations" / "test-step000000.jsonl")
"""
# `lit-rlhf` itself; only what it starts, and the drawing, are other ones.
START = """
import sys
sys.path.insert(0, {root!r})
import lit_rlhf.cli
import lit_rlhf.commands.pocket_pipeline
import lit_rlhf.reports.plots as plots
def draw(logs, out):
    if "NO_PLOTS" in __import__("os").environ:
        raise ImportError("Plots need matplotlib: pip install 'lit-rlhf[plots]'.")
    out.touch()
plots.plot_panels = draw
sys.path[0] = {stub!r}
lit_rlhf.cli.main()
"""


class Pocket:
    """A folder in which the pipeline runs against the stub."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        package = folder / "stub" / "lit_rlhf"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(STUB)
        (folder / "start.py").write_text(START.format(root=str(ROOT), stub=str(folder / "stub")))

    def start(self, *words: str, **env: str) -> subprocess.Popen[str]:
        command = [sys.executable, "start.py", "pocket", "run", "--runs", "runs", *words]
        env = {**os.environ, **env}
        # A shell's background jobs ignore SIGINT, and so do their children: pytest itself may be one.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(
                command, env=env, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )  # fmt: skip
        finally:
            signal.signal(signal.SIGINT, handler)

    def run(self, *words: str, **env: str) -> tuple[int, str]:
        """Exit code and output."""
        process = self.start(*words, **env)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def commands(self) -> list[list[str]]:
        """Those started since the last call."""
        path = self.folder / "commands.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def stages(self) -> list[str]:
        """The same, one word a command; what ran side by side is in alphabetical order."""
        return [Path(words[2]).stem if words[0] == "fit" else words[0] for words in sorted_fits(self.commands())]

    def hanging(self) -> int:
        """Process id of the command that hangs, as soon as it does."""
        path = self.folder / "hanging"
        for _ in range(600):
            if path.exists() and path.read_text():
                return int(path.read_text())
            time.sleep(0.05)
        raise AssertionError("no command hangs")


def sorted_fits(commands: list[list[str]]) -> list[list[str]]:
    ppo = sorted(words for words in commands if words[0] == "fit" and "ppo" in words[2])
    first = next((i for i, words in enumerate(commands) if words in ppo), 0)
    return commands[:first] + ppo + [words for words in commands[first:] if words not in ppo]


@pytest.fixture
def pocket(tmp_path: Path) -> Pocket:
    return Pocket(tmp_path)


BEFORE_PPO = ["pocket", "pretrain", "sft", "reward"]
PPO = ["ppo_max", "ppo_vanilla"]
RESULTS = ["compare", "report"]


def test_every_stage_runs_once_and_finished_ones_not_again(pocket: Pocket) -> None:
    code, output = pocket.run("--seed", "5", "--epochs", "7")
    assert code == 0, output
    commands = pocket.commands()
    fits = [words for words in commands if words[0] == "fit"]
    for words in fits:
        assert words[words.index("--ckpt_path") + 1] == "last"
        assert words[words.index("--seed_everything") + 1] == words[words.index("--data.seed") + 1] == "5"
        assert ("--trainer.max_epochs" in words) == ("ppo" in words[2])
    tests = [words for words in commands if words[0] == "test"]
    assert len(tests) == 3
    assert all(words[words.index("--model.reference.path") + 1] == "runs/sft/export/final" for words in tests)
    names = [Path(words[2]).stem if words[0] == "fit" else words[0] for words in sorted_fits(commands)]
    assert names == [*BEFORE_PPO, *PPO, "test", "test", "test", *RESULTS]
    assert pocket.run("--seed", "5", "--epochs", "7")[0] == 0
    assert pocket.stages() == RESULTS


def test_without_matplotlib_the_picture_is_left_out_and_one_line_says_so(pocket: Pocket) -> None:
    code, output = pocket.run(NO_PLOTS="1")
    assert code == 0, output
    (line,) = [line for line in output.splitlines() if "panels.png" in line]
    assert line == "panels.png is left out. Plots need matplotlib: pip install 'lit-rlhf[plots]'."
    assert "report.html" in output
    pocket.commands()
    assert "runs/panels.png" in pocket.run()[1]


def test_a_directory_of_another_run_is_refused(pocket: Pocket) -> None:
    assert pocket.run("--seed", "5")[0] == 0
    pocket.commands()
    for words in (["--seed", "6"], ["--seed", "5", "--epochs", "2"]):
        code, output = pocket.run(*words)
        assert code == 2
        assert "lit-rlhf: runs was made with {'seed': 5, 'epochs': None}, not" in output
        assert pocket.commands() == []


def test_a_failing_stage_says_so_and_is_the_one_that_runs_again(pocket: Pocket) -> None:
    code, output = pocket.run(STUB_FAILS="sft")
    assert code == 1
    assert "failed (exit code 3): lit-rlhf fit --config runs/configs/sft.yaml" in output
    assert pocket.stages() == ["pocket", "pretrain", "sft"]
    assert pocket.run()[0] == 0
    assert pocket.stages() == ["sft", "reward", *PPO, "test", "test", "test", *RESULTS]


@pytest.mark.parametrize(("fails", "hangs"), [PPO, PPO[::-1]])
def test_when_one_of_two_fails_the_other_ends_too(pocket: Pocket, fails: str, hangs: str) -> None:
    code, output = pocket.run(STUB_FAILS=fails, STUB_HANGS=hangs)
    assert code == 1
    assert "the reason" in output  # the quiet one's log has it
    assert f"failed (exit code 3): lit-rlhf fit --config runs/configs/{fails}.yaml" in output
    with pytest.raises(ProcessLookupError):
        os.kill(int((pocket.folder / "hanging").read_text()), 0)


def test_interrupted_it_leaves_nothing_running_and_goes_on(pocket: Pocket) -> None:
    process = pocket.start(STUB_HANGS="reward")
    child = pocket.hanging()
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.splitlines()[-1] == "lit-rlhf: interrupted: the same command resumes from the last checkpoint"
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    pocket.commands()
    assert pocket.run()[0] == 0
    assert pocket.stages()[:3] == ["reward", *PPO]


def test_metrics_of_a_resumed_run_replace_the_iterations_it_repeats(tmp_path: Path) -> None:
    for version, text in {
        2: "step,loss,val/score\n6,0.6,\n6,,0.66\n7,0.7,\n",
        10: "step,loss,new,val/score\n7,0.77,1,\n8,0.8,1,\n",
    }.items():
        folder = tmp_path / "csv" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(text)
    rows = joined_metrics(tmp_path).read_text().splitlines()
    assert rows == ["step,loss,val/score,new", "6,0.6,,", "6,,0.66,", "7,0.77,,1", "8,0.8,,1"]
