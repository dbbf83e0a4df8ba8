"""A file system that is full at any write of a run: one line, exit code 2, and nothing older is lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Ended, ended, files_under, ppo_config, refused, run, write_config
from tests.evaluation.made_up_answers import row, write
from tests.reports.made_up_run import make_run
from tests.strategies.full_disk import fill

LOGGERS: dict[str, Any] = {
    "TensorBoardLogger": {"name": "tensorboard"},
    "lit_rlhf.commands.csv_log.RunCSVLogger": {},
}

# The moment the disk is full, who writes next, and what the line names.
CASES = [
    ("rollout", "SampleLogger", "samples.jsonl'"),
    ("validation", "", "evaluations/val-step000004.jsonl'"),
    ("epoch", "", "epoch=1-step=4.ckpt could not be written (No space left on device)"),
    ("end", "", "export/final'"),
    ("batch", "TensorBoardLogger", "No space left on device"),
    ("batch", "lit_rlhf.commands.csv_log.RunCSVLogger", "No space left on device"),
]


@pytest.fixture
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of few megabytes, 3 where no parameter says how many."""
    folder = tmp_path / "small"
    folder.mkdir()
    size = f"size={getattr(request, 'param', 3)}m"
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fit(capsys: pytest.CaptureFixture[str], world: Path, root: Path, *, at: str | None, writer: str) -> Ended:
    """One start of the run in ``root``; at the moment ``at`` the disk is filled."""
    config = ppo_config(world, root)
    trainer, callbacks = config["trainer"], []
    if at is not None:
        options = {"folder": str(root.parent), "at": at}
        callbacks.append({"class_path": "tests.strategies.full_disk.FillDisk", "init_args": options})
    if writer in LOGGERS:
        trainer["logger"] = {"class_path": writer, "init_args": {"save_dir": str(root), **LOGGERS[writer]}}
    else:
        trainer["logger"] = False
        config["data"]["init_args"]["val"] = str(world / "prompts.jsonl")
    if writer == "SampleLogger":
        callbacks.append({"class_path": writer, "init_args": {"every_n_iterations": 1}})
    trainer["callbacks"] = callbacks
    path = write_config(root.parent.parent / "config.yaml", config)
    return ended(capsys, "fit", "--config", path, "--ckpt_path", "last")


@pytest.mark.parametrize(("at", "writer", "told"), CASES)
def test_is_one_line_and_loses_nothing_older(
    world: Path, small: Path, at: str, writer: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small / "run"
    full = fit(capsys, world, run, at=at, writer=writer)
    lines = [line for line in full.err.splitlines() if line.startswith("lit-rlhf") or "rror" in line]
    assert full.code == 2, full.err
    assert len(lines) == 1, full.err
    assert told in lines[0]
    kept = files_under(run)
    assert not [name for name in kept if "tmp" in name or "partial" in name]
    if at in ("rollout", "validation", "epoch"):  # in the second iteration
        assert {"checkpoints/epoch=0-step=2.ckpt", "evaluations/val-step000002.jsonl"} <= kept
    (small / "filler").unlink()
    again = fit(capsys, world, run, at=None, writer=writer)
    assert again.code == 0, again.err
    assert (run / "checkpoints" / "epoch=1-step=4.ckpt").exists()
    assert (run / "export" / "final" / "config.json").exists()


@pytest.fixture(scope="module")
def inputs(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read, on another file system."""
    root = tmp_path_factory.mktemp("inputs")
    make_run(root / "run", collapsing=True, iterations=5)
    for name in ("a", "b"):
        write(root / f"{name}.jsonl", [row(i, name * (i + 1), score=float(i)) for i in range(4)])
    pair = {"chosen": "\n\nHuman: hi\n\nAssistant: yes", "rejected": "\n\nHuman: hi\n\nAssistant: no"}
    write(root / "pairs.jsonl", [pair, {"chosen": 1}])
    config = ppo_config(world, root / "ppo")
    config["trainer"] |= {"logger": False, "max_epochs": 1}
    config["data"]["init_args"]["predict"] = str(world / "prompts.jsonl")
    run("fit", "--config", write_config(root / "ppo.yaml", config))
    return root


WRITING = {
    "report": "report {inputs}/run --out {small}/run.html",
    "compare": (
        "compare {inputs}/a.jsonl {inputs}/b.jsonl --out {small}/result"
        " --judge ScoreJudge --judge.score score --judge.tie_margin 0"
    ),
    "sheet": "compare {inputs}/a.jsonl {inputs}/b.jsonl --judge HumanJudge --out {small}/{new}",
    "tax": "tax a={world}/policy b={world}/policy --text {inputs}/pairs.jsonl --template hh --out {small}/tax",
    "score": "score --model {world}/reward {inputs}/pairs.jsonl --template hh --out {small}/s.jsonl --report {small}/r",
    "data check": "data check {inputs}/pairs.jsonl --rejects {small}",
    "export": "export {inputs}/ppo/checkpoints/last.ckpt {small}/hf",
    "predict": "predict --config {inputs}/ppo.yaml --trainer.default_root_dir {small}",
    "pocket make": "pocket make {small}/{new}",
}


@pytest.mark.parametrize("small", [16], indirect=True)
@pytest.mark.parametrize("name", WRITING)
def test_another_verb_that_cannot_write_leaves_what_is_there(
    name: str, world: Path, small: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(new: str) -> list[str]:
        return WRITING[name].format(world=world, small=small, inputs=inputs, new=new).split()

    if name != "pocket make":  # whose files are the same each time
        run(*words("first"))
    before = {path: path.read_bytes() for path in small.rglob("*") if path.is_file()}
    fill(small)
    assert "No space left on device" in refused(capsys, *words("second"))
    (small / "filler").unlink()
    after = {path: path.read_bytes() for path in small.rglob("*") if path.is_file() and path.stat().st_size}
    assert after == before
