"""`bin/studies/failures.py`: a run differs from the healthy one by its own changes; a picture has every panel."""

from __future__ import annotations

from pathlib import Path

import pytest

from bin.studies.failures import FAILURES, HEALTHY, LONG, config, draw, table

ITERATIONS = 3


def options(name: str, tmp_path: Path) -> dict:
    return config(tmp_path / "pocket", tmp_path / name, FAILURES[name], ITERATIONS)["model"]["init_args"]


@pytest.mark.parametrize("name", [name for name in FAILURES if name not in (HEALTHY, *LONG)])
def test_a_run_differs_by_its_changes_alone(name: str, tmp_path: Path) -> None:
    healthy, failing = options(HEALTHY, tmp_path), options(name, tmp_path)
    changed = {path.partition(".")[0] for path in FAILURES[name].changes}
    assert changed
    assert {key for key in failing if failing[key] != healthy.get(key)} == changed


def test_the_reward_model_of_the_pocket_run_is_what_a_wrapped_reward_reads(tmp_path: Path) -> None:
    reward = options("length", tmp_path)["reward"]
    assert reward["class_path"] == "LengthReward"
    assert reward["init_args"]["reward"]["init_args"] == options(HEALTHY, tmp_path)["reward"]["init_args"]


def write_run(run: Path, rise: float) -> None:
    (run / "csv" / "version_0").mkdir(parents=True)
    (run / "export" / "final").mkdir(parents=True)
    names = ["epoch", "rollout/score", "rollout/response_length", "rollout/kl", "rollout/perplexity", "rollout/entropy"]
    rows = [[i, rise * i, 10, 0.1, 2, 1] for i in range(3)]
    lines = [",".join(names), *(",".join(map(str, row)) for row in rows)]
    (run / "csv" / "version_0" / "metrics.csv").write_text("\n".join(lines))


def test_picture_and_table(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, rise in ((HEALTHY, 1.0), ("kl", 2.0)):
        write_run(tmp_path / name, rise)
    draw("kl", tmp_path, tmp_path / "pocket", tmp_path)
    assert (tmp_path / "kl.png").stat().st_size > 10_000
    rows = table(tmp_path, tmp_path / "pocket").splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [["| healthy", "1"], ["| kl", "2"]]
