"""Every verb through the entry point of the console script: what a shell sees when it works and when it cannot."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lit_rlhf.pocket import make
from tests.command_line import ended, ppo_config, refused, run, write_config


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `config.yaml` and `run`, one iteration of PPO with evaluated responses."""
    folder = tmp_path_factory.mktemp("trained")
    config = ppo_config(world, folder / "run")
    config["data"]["init_args"]["val"] = str(world / "prompts.jsonl")
    path = write_config(folder / "config.yaml", config)
    run("fit", "--config", path, "--trainer.max_epochs", "1")
    run("test", "--config", path, "--ckpt_path", "last", f"--data.test={world / 'prompts.jsonl'}")
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "pairs.jsonl"
    pair = {"prompt": "ab", "chosen": "cd", "rejected": "ef"}
    path.write_text(json.dumps(pair) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_training_verbs(verb, trained, world, capsys) -> None:
    config = ["--config", str(trained / "config.yaml"), f"--trainer.default_root_dir={trained / verb}"]
    prompts = str(world / "prompts.jsonl")
    words = [verb, *config, f"--data.test={prompts}", f"--data.predict={prompts}", "--trainer.max_epochs=1"]
    assert ended(capsys, *words).code == 0
    assert "nowhere.yaml" in refused(capsys, verb, "--config", "nowhere.yaml")
    assert "max_epochs" in refused(capsys, verb, *config, "--trainer.max_epoch=1")


def test_report(trained, tmp_path, capsys) -> None:
    found = ended(capsys, "report", str(trained / "run"), "--out", str(tmp_path / "r.html"))
    assert (found.code, found.out) == (0, f"{tmp_path / 'r.html'}\n")
    assert str(tmp_path) in refused(capsys, "report", str(tmp_path), "--out", str(tmp_path / "r.html"))


SCORE = ("--judge", "ScoreJudge", "--judge.score", "score", "--judge.tie_margin", "0.1")


def test_compare(trained, tmp_path, capsys) -> None:
    run_dir = str(trained / "run")
    found = ended(capsys, "compare", f"a={run_dir}", f"b={run_dir}", *SCORE, "--out", str(tmp_path / "t"))
    assert found.code == 0
    assert json.loads((tmp_path / "t.json").read_text())["judge"] == "score"
    assert "holds no evaluated responses" in refused(capsys, "compare", str(tmp_path), run_dir, *SCORE)
    line = refused(capsys, "compare", f"a={run_dir}", f"b={run_dir}", *SCORE, "--judge.score", "gold")
    assert "`score` (gold) is not among its numbers: " in line
    assert "score" in line


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "row 2: not JSON"),
        ('{"text": "x"}', "row 2: wrong types: expected an object"),
        ("[]", "row 2: wrong types"),
    ],
)
def test_compare_names_the_line_that_is_no_response(line, told, trained, tmp_path, capsys) -> None:
    (saved,) = (trained / "run" / "evaluations").glob("test-*.jsonl")
    file = tmp_path / "x.jsonl"
    file.write_text(saved.read_text(encoding="utf-8").splitlines()[0] + f"\n{line}\n", encoding="utf-8")
    assert told in refused(capsys, "compare", str(file), str(trained / "run"), *SCORE)


def test_score(world, rows, tmp_path, capsys) -> None:
    words = ["score", "--model", str(world / "reward"), "--out", str(tmp_path / "s.jsonl")]
    assert ended(capsys, *words, rows).code == 0
    assert set(json.loads((tmp_path / "s.jsonl").read_text())) >= {"chosen_score", "rejected_score"}
    assert "gone.jsonl" in refused(capsys, *words, str(tmp_path / "gone.jsonl"))


def test_export(trained, tmp_path, capsys) -> None:
    checkpoint = str((trained / "run" / "checkpoints" / "last.ckpt").resolve())
    found = ended(capsys, "export", checkpoint, str(tmp_path / "out"))
    assert (found.code, found.out) == (0, f"policy: {tmp_path / 'out'}\n")
    assert "no part `reward`" in refused(capsys, "export", checkpoint, str(tmp_path / "x"), "--part", "reward")
    assert not (tmp_path / "x").exists()


def test_plan(trained, capsys) -> None:
    words = ["plan", "--config", str(trained / "config.yaml"), "--cpu", "--memory"]
    assert ended(capsys, *words, "8GB").code == 0
    small = ended(capsys, *words, "1KB")
    assert (small.code, small.err) == (1, "")
    assert "DOES NOT FIT" in small.out
    assert "`memory` (large)" in refused(capsys, *words, "large")


def test_data_check(rows, tmp_path, capsys) -> None:
    assert ended(capsys, "data", "check", rows).code == 0
    with Path(rows).open("a", encoding="utf-8") as file:
        file.write("no json\n")
    assert ended(capsys, "data", "check", rows).code == 0
    assert ended(capsys, "data", "check", rows, "--on-bad-row", "error").code == 1
    assert "gone.jsonl" in refused(capsys, "data", "check", str(tmp_path / "gone.jsonl"))


def test_pocket_make(tmp_path, monkeypatch, capsys) -> None:
    for name in ("DOCUMENTS", "DEMONSTRATIONS", "TRAIN_PROMPTS"):
        monkeypatch.setattr(make, name, 5)
    monkeypatch.setattr(make, "PAIRS", {"train": 5, "val": 5, "test": 5})
    found = ended(capsys, "pocket", "make", str(tmp_path / "data"))
    assert found.code == 0
    assert found.out.splitlines()[-1] == str(tmp_path / "data" / "base")
    file = tmp_path / "file"
    file.touch()
    assert str(file) in refused(capsys, "pocket", "make", str(file / "below"))


def test_pocket_run_refuses_before_it_starts_anything(tmp_path, capsys) -> None:
    (tmp_path / "run.json").write_text('{"seed": 5, "epochs": null}')
    line = refused(capsys, "pocket", "run", "--runs", str(tmp_path))
    assert f"{tmp_path} was made with {{'seed': 5, 'epochs': None}}, not {{'seed': 0" in line
    assert os.listdir(tmp_path) == ["run.json"]  # noqa: PTH208
    assert "`--epochs` (0)" in refused(capsys, "pocket", "run", "--epochs", "0")


def test_a_full_disk_is_one_line(trained, monkeypatch, capsys) -> None:
    def write(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lit_rlhf.commands.report.write_report", write)
    assert refused(capsys, "report", str(trained / "run")) == "lit-rlhf: No space left on device."


def test_a_fault_of_the_program_keeps_its_traceback(trained, monkeypatch) -> None:
    def slip(*_: object, **__: object) -> int:
        return int("x")

    monkeypatch.setattr("lit_rlhf.commands.report.write_report", slip)
    with pytest.raises(ValueError, match="invalid literal"):
        run("report", str(trained / "run"))


def test_debugging_shows_the_traceback_of_what_is_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("LIT_RLHF_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        run("compare", f"a={tmp_path}", f"b={tmp_path}", *SCORE)
