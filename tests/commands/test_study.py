"""`lit-rlhf study`: two tiny arms for real, interrupted and resumed, beside one that fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lit_rlhf.cli import main
from tests.distributed_harness import clean_environment

ARM = """
trainer: {accelerator: cpu, max_epochs: 2, default_root_dir: tiny/x, check_val_every_n_epoch: 1, limit_val_batches: 1}
model:
  class_path: PPOModule
  init_args:
    policy: tiny/data/base
    critic: {init: policy}
    reward:
      class_path: PythonReward
      init_args: {function: "lit_rlhf.pocket.gold:gold_reward", name: gold}
    sampling: {max_response_length: 4}
    eval_rewards:
      gold: {class_path: PythonReward, init_args: {function: "lit_rlhf.pocket.gold:gold_reward"}}
data:
  class_path: RolloutDataModule
  init_args:
    train: tiny/data/prompts_train.jsonl
    val: tiny/data/prompts_val.jsonl
    eval_batch_size: 2
    rollout_batch_size: 4
    minibatch_size: 4
    max_prompt_length: 64
"""

STUDY = """
seeds: [3]
root: tiny
prepare:
  data: {run: "pocket make {here}/data --seed {seed}", made: data/base/config.json}
  opponents:
    config: FOLDER/arm.yaml
    verb: validate
    made: "opponents/evaluations/val-*.jsonl"
    set: {trainer.logger: false}
judging: {opponents: opponents, score: gold}
arms:
  plain: {config: FOLDER/arm.yaml}
  slow: {config: FOLDER/arm.yaml, set: {model.optimizer.lr: 1.0e-7}, minutes: 1.5}
  broken: {config: FOLDER/arm.yaml, set: {model.optimizer.lr: -1}}
figures:
  - {title: Both, arms: [plain, slow], panels: [win, val/gol], claims: [{says: it is slow, arm: slow, against: plain}]}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "arm.yaml").write_text(ARM, encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(STUDY.replace("FOLDER", str(tmp_path)), encoding="utf-8")
    return tmp_path


def study(files: Path, *more: str) -> list[str]:
    return ["study", str(files / "tiny.yaml"), "--out", str(files / "out"), "--jobs", "2", *more]


def test_a_study_is_interrupted_resumed_and_reported(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "lit_rlhf", *study(files)]
    # A shell's background jobs ignore SIGINT, and so do their children: pytest itself may be one.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        first = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=clean_environment(), start_new_session=True
        )
    finally:
        signal.signal(signal.SIGINT, handler)
    data = files / "out" / "seed3" / "data" / "base" / "config.json"
    deadline = time.monotonic() + 300
    while not (files / "out" / "seed3" / "opponents.log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGINT)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 130
    assert (
        "5 runs, 0 done. To come: about 0.0 core-hours, 45 s with 2 job(s), and 4 runs that were never timed." in said
    )
    assert "seed 3  data:" in said
    made = data.stat().st_mtime_ns

    with pytest.raises(SystemExit) as ended:
        main(study(files))
    assert ended.value.code == 1  # one arm cannot run
    told = capsys.readouterr()
    assert data.stat().st_mtime_ns == made
    assert "5 runs, 1 done." in told.out
    assert "broken: " in told.out
    assert "FAILED: " in told.out
    assert "`lr` (-1" in told.out  # the run's own last line
    assert "1 run(s) failed; the same command tries them again" in told.err
    for file in ("results.csv", "study.md", "study.html"):
        assert (files / "out" / file).stat().st_size > 100
    assert "2 of 3 runs of 3 arms are done; seeds done where some are missing: broken (0 of 1)." in told.out
    assert "Both\n\n| claim |" in told.out
    assert "| it is slow | end of win: slow less plain |" in told.out
    assert "No run has: val/gol." in told.out
    rows = [json.loads(line) for line in (files / "out" / "timings.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows] in (
        ["data", "opponents", "plain", "slow"],
        ["data", "opponents", "slow", "plain"],
    )

    main(study(files, "--dry-run"))
    told = capsys.readouterr()
    assert "seed 3  plain: done" in told.out
    assert "5 runs, 4 done. To come: 1 runs, of which none was timed yet." in told.out

    mended = (files / "tiny.yaml").read_text(encoding="utf-8").replace("lr: -1}", "lr: -2}")
    (files / "tiny.yaml").write_text(mended, encoding="utf-8")
    with pytest.raises(SystemExit):  # an arm that failed before it made anything may be another one
        main(study(files, "--arms", "broken"))
    assert "`lr` (-2" in capsys.readouterr().out

    other = mended.replace("1.0e-7", "1.0e-6")
    (files / "tiny.yaml").write_text(other, encoding="utf-8")
    with pytest.raises(SystemExit):
        main(study(files))
    assert "holds runs of `slow` with another `set`" in capsys.readouterr().err
    main(study(files, "--only-report", "--arms", "plain"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody"], "No config 'nobody' ships with lit_rlhf."),
        (["nobody.yaml"], "There is no config file 'nobody.yaml'."),
        (["pocket/study", "--jobs", "0"], "argument --jobs: invalid _positive value: '0'"),
        (["pocket/study", "--arms", "x"], "`--arms` names 'x'"),
        (["pocket/study", "--seeds", "9"], "`--seeds` names 9, which no arm has"),
        (["pocket/study", "--seeds", "105", "--arms", "ptx"], "`--seeds` and `--arms` leave nothing to run."),
        (["pocket/study", "--only-report", "--out", "nowhere"], "nowhere holds no finished arm yet"),
    ],
)
def test_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", *words])
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
