"""The command line: fast help, one-line errors before any model loads, layered configs, resume, predictions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.command_line import ended, files_under, ppo_config, refused, run, write_config

HEAVY = ("torch", "lightning", "transformers", "datasets", "deepspeed", "numpy", "rich", "jsonargparse")


# ---------------------------------------------------------------- help and version


def cpu_seconds(*words: str) -> float:
    """CPU time of a fresh process, which a busy machine does not lengthen as it does wall time."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "lit_rlhf", *words], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("words", [["--help"], ["--version"], []], ids=str)
def test_help_and_version_take_under_half_a_second(words) -> None:
    assert min(cpu_seconds(*words) for _ in range(3)) < 0.5


@pytest.mark.parametrize("word", ["--help", "-h", "--version"])
def test_help_and_version_import_nothing_heavy(word) -> None:
    code = (
        f"import sys; from lit_rlhf.cli import main; main([{word!r}]); "
        f"print(sorted(set(sys.modules) & {set(HEAVY)!r}), file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ended.stderr.strip() == "[]"
    assert ended.stdout.strip()


@pytest.mark.parametrize("words", [["configs"], ["configs", "pocket/study"]])
def test_a_reader_that_goes_away_is_no_error(words) -> None:
    """As in `lit-rlhf configs | head -1`; the second says more than stdout's buffer holds."""
    command = [sys.executable, "-m", "lit_rlhf", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141


def test_help_names_every_command(capsys) -> None:
    from lit_rlhf.cli import COMMANDS, TRAINING

    run("--help")
    text = capsys.readouterr().out
    assert [name for name in (*TRAINING, *COMMANDS) if name not in text] == []


def test_version_is_the_packages(capsys) -> None:
    import lit_rlhf

    run("--version")
    assert capsys.readouterr().out.strip() == lit_rlhf.__version__


# ---------------------------------------------------------------- what the user can mend


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Loading any weights is a failure; the current folder is an empty one."""

    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lit_rlhf.models.loading.pretrained.check_weights_are_plain", load)
    empty = tmp_path / "cwd"
    empty.mkdir()
    monkeypatch.chdir(empty)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fitt"], ["'fitt'", "fit", "validate", "export"]),
        (["pocket", "mak"], ["pocket make", "pocket run"]),
        (["pocket"], ["pocket make", "pocket run"]),
        (["data", "validate"], ["data check"]),
    ],
    ids=" ".join,
)
def test_unknown_command_names_those_there_are(words, told, capsys, no_model) -> None:
    line = refused(capsys, *words)
    assert [part for part in told if part not in line] == []


def nested(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """An edit of a config: set the value below ``keys``."""

    def edit(config: dict[str, Any]) -> None:
        at = config
        for key in keys[:-1]:
            at = at.setdefault(key, {})
        at[keys[-1]] = value

    return edit


ARGS = ("model", "init_args")
BAD_FILES: list[tuple[str, Callable[[dict[str, Any]], None], list[str]]] = [
    ("top level", nested("modell", value={}), ["modell", "Did you mean: model"]),
    ("trainer", nested("trainer", "max_epochz", value=3), ["max_epochz", "max_epochs"]),
    ("init_args", nested(*ARGS, "samplin", value={"top_p": 0.9}), ["samplin", "sampling"]),
    ("group", nested(*ARGS, "sampling", "top_pp", value=0.9), ["top_pp", "top_p"]),
    ("reward", nested(*ARGS, "reward", "init_args", "pth", value="x"), ["pth", "path"]),
    ("data", nested("data", "init_args", "rollout_batchsize", value=8), ["rollout_batchsize", "rollout_batch_size"]),
    ("class", nested("model", "class_path", value="PPOModul"), ["PPOModul"]),
    ("literal", nested(*ARGS, "loss", value={"average": "token"}), ["average", "token", "responses"]),
    ("type", nested(*ARGS, "sampling", "top_p", value="high"), ["top_p", "high"]),
    ("rule", nested(*ARGS, "sampling", "top_p", value=1.5), ["`top_p`", "1.5", "(0, 1]"]),
    ("choice", nested(*ARGS, "on_non_finite", value="ignore"), ["on_non_finite", "ignore", "stop", "skip"]),
    ("sizes", nested("data", "init_args", "minibatch_size", value=3), ["`rollout_batch_size` (8)", "`minibatch_size`"]),
    ("data file", nested("data", "init_args", "train", value="nowhere.jsonl"), ["nowhere.jsonl"]),
    ("model folder", nested(*ARGS, "policy", value="./nowhere"), ["./nowhere"]),
]


@pytest.mark.parametrize(("edit", "told"), [b[1:] for b in BAD_FILES], ids=[b[0] for b in BAD_FILES])
def test_bad_config_file_is_one_line(edit, told, capsys, no_model, world) -> None:
    config = ppo_config(world, no_model / "run")
    edit(config)
    line = refused(capsys, "fit", "--config", write_config(no_model / "config.yaml", config))
    assert [part for part in told if part not in line] == [], line
    assert files_under(no_model / "cwd") == set()
    assert not (no_model / "run" / "checkpoints").exists()
    assert not (no_model / "run" / "export").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.samplin.top_p", "0.9"], ["samplin", "sampling"]),
        (["--trainer.max_epochz=3"], ["max_epochz", "max_epochs"]),
        (["--modell.policy", "x"], ["modell", "model"]),
        (["--data.rollout_batch_size", "many"], ["rollout_batch_size", "many"]),
        (["--model.loss.average", "token"], ["average", "token", "responses"]),
        (["--ckpt_path", "nowhere.ckpt"], ["nowhere.ckpt"]),
        # The beginning of a name is not the name, wherever in the tree it stands.
        (["--trainer.max_epoch", "3"], ["max_epoch`", "max_epochs"]),
        (["--trainer.max_epoch=3"], ["max_epoch`", "max_epochs"]),
        (["--seed", "3"], ["--seed. ", "Did you mean: seed_everything?"]),
        (["--ckpt", "last"], ["--ckpt. ", "Did you mean: ckpt_path?"]),
        (["--conf", "other.yaml"], ["--conf. ", "config"]),
        (["--model.critic.ini", "reward"], ["critic.ini", "init"]),
        (["--model.sampling.top_", "0.9"], ["top_", "top_p"]),
        (["--model.reward.pat", "x"], ["pat", "path"]),
        (["--data.rollout_batch", "8"], ["rollout_batch", "rollout_batch_size"]),
        (["--train.max_epochs", "3"], ["Did you mean: trainer?"]),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else None,
)
def test_bad_option_is_one_line(words, told, capsys, no_model, world) -> None:
    config = write_config(no_model / "config.yaml", ppo_config(world, no_model / "run"))
    line = refused(capsys, "fit", "--config", config, *words)
    assert [part for part in told if part not in line] == [], line
    assert files_under(no_model / "cwd") == set()


def test_evaluating_the_last_checkpoint_of_an_empty_run_is_one_line(capsys, no_model, world) -> None:
    config = write_config(no_model / "config.yaml", ppo_config(world, no_model / "run"))
    line = refused(capsys, "test", "--config", config, "--ckpt_path", "last")
    assert "there is no checkpoint" in line


def test_missing_config_file_is_one_line(capsys, no_model) -> None:
    assert "nowhere.yaml" in refused(capsys, "fit", "--config", "nowhere.yaml")


def test_a_config_that_is_no_yaml_is_one_line(capsys, no_model) -> None:
    (no_model / "bad.yaml").write_text("trainer: {max_epochs: 3\nmodel: [")
    assert "bad.yaml" in refused(capsys, "fit", "--config", str(no_model / "bad.yaml"))


@pytest.mark.parametrize("how", ["--config FILE", "--config=FILE", "-c FILE", "-cFILE", "environment"])
def test_a_key_that_stands_twice_in_a_config_is_refused_however_the_file_is_given(
    how, capsys, no_model, world, monkeypatch
) -> None:
    path = no_model / "twice.yaml"
    text = yaml.safe_dump(ppo_config(world, no_model / "run"))
    path.write_text(text.replace("  max_epochs: 2\n", "  max_epochs: 2\n  max_epochs: 3\n"))
    words = how.replace("FILE", str(path)).split()
    if how == "environment":
        monkeypatch.setenv("LIT_RLHF_FIT__CONFIG", str(path))
        words = []
    line = refused(capsys, "fit", *words)
    assert "twice.yaml, line " in line
    assert "'max_epochs' stands twice" in line


def test_a_key_of_a_later_config_is_no_repetition(capsys, no_model, world) -> None:
    first = write_config(no_model / "first.yaml", ppo_config(world, no_model / "run"))
    second = write_config(no_model / "second.yaml", {"trainer": {"max_epochs": 5}})
    found = ended(capsys, "fit", "--config", first, "--config", second, "--print_config")
    assert found.code == 0
    assert yaml.safe_load(found.out)["trainer"]["max_epochs"] == 5


def test_errors_of_the_program_itself_keep_their_traceback(monkeypatch, world, tmp_path) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyError("a slip of ours")

    monkeypatch.setattr("lit_rlhf.datamodules.rollout.RolloutDataModule.setup", broken)
    with pytest.raises(KeyError):
        run("fit", "--config", write_config(tmp_path / "config.yaml", ppo_config(world, tmp_path / "run")))


# ---------------------------------------------------------------- configs and runs


def test_print_config_shows_every_key(capsys, no_model, world) -> None:
    config = write_config(no_model / "config.yaml", ppo_config(world, no_model / "run"))
    found = ended(capsys, "fit", "--config", config, "--model.sampling.top_p", "0.5", "--print_config")
    assert found.code == 0
    shown = yaml.safe_load(found.out)
    args = shown["model"]["init_args"]
    assert args["sampling"]["top_p"] == 0.5
    assert args["sampling"]["max_response_length"] == 6
    assert {"shaping", "loss", "kl_controller", "estimator", "policy_loss", "critic"} <= args.keys()
    assert not (no_model / "run").exists()


def test_later_configs_and_options_override_earlier_ones(capsys, no_model, world) -> None:
    first = write_config(no_model / "first.yaml", ppo_config(world, no_model / "run"))
    args = {"sampling": {"temperature": 0.7}, "loss": {"vf_coef": 0.3}}
    second = write_config(no_model / "second.yaml", {"trainer": {"max_epochs": 5}, "model": {"init_args": args}})
    with pytest.raises(SystemExit):
        run("fit", "--config", first, "--config", second, "--model.loss.vf_coef", "0.1", "--print_config")
    shown = yaml.safe_load(capsys.readouterr().out)
    args = shown["model"]["init_args"]
    assert shown["trainer"]["max_epochs"] == 5
    assert args["sampling"]["temperature"] == 0.7
    assert args["sampling"]["max_response_length"] == 6, "the first file's value is lost"
    assert args["loss"]["vf_coef"] == 0.1


@pytest.fixture(scope="module")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was the current one while `fit` ran for one iteration with `runs/x` as its run directory."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder / "config.yaml", ppo_config(world, "runs/x"))
    previous = Path.cwd()
    os.chdir(folder)
    try:
        run("fit", "--config", config, "--trainer.max_epochs", "1", f"--data.val={world / 'prompts.jsonl'}")
    finally:
        os.chdir(previous)
    return folder


def test_everything_is_written_inside_the_run_directory(finished) -> None:
    written = files_under(finished) - {"config.yaml"}
    assert {name for name in written if not name.startswith("runs/x/")} == set()
    run_files = files_under(finished / "runs" / "x")
    assert {"config.yaml", "checkpoints/last.ckpt", "export/final/config.json"} <= run_files
    assert any(name.startswith("tensorboard/") and "tfevents" in name for name in run_files)
    assert any(name.startswith("csv/") and name.endswith("metrics.csv") for name in run_files)
    assert any(name.startswith("evaluations/val-") for name in run_files)


def test_the_saved_config_repeats_the_run(finished, capsys) -> None:
    with pytest.raises(SystemExit):
        run("fit", "--config", str(finished / "runs" / "x" / "config.yaml"), "--print_config")
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_epochs"] == 1


def test_fit_continues_from_last(finished, monkeypatch) -> None:
    monkeypatch.chdir(finished)
    run("fit", "--config", "config.yaml", "--ckpt_path", "last")
    state = torch.load("runs/x/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 4, sorted(p.name for p in Path("runs/x/checkpoints").iterdir())
    assert state["lit_rlhf"]["iteration"] == 1
    assert state["lit_rlhf"]["moments"]["count"] == 16, "the running moments started again"


def test_a_checkpoint_with_a_critic_is_evaluated_without_one(finished, world, monkeypatch) -> None:
    monkeypatch.chdir(finished)
    run("test", "--config", "config.yaml", f"--data.test={world / 'prompts.jsonl'}", "--ckpt_path", "last")
    assert list(Path("runs/x/evaluations").glob("test-*.jsonl"))


def test_predict_writes_predictions(finished, world, monkeypatch) -> None:
    monkeypatch.chdir(finished)
    prompts = world / "prompts.jsonl"
    run("predict", "--config", "config.yaml", f"--data.predict={prompts}", "--ckpt_path", "last")
    rows = [json.loads(line) for line in Path("runs/x/predictions.jsonl").read_text().splitlines()]
    assert [row["record"]["id"] for row in rows] == list(range(len(prompts.read_text().splitlines())))
    assert all(isinstance(row["response"], str) for row in rows)


@pytest.fixture
def _sigint() -> Iterator[None]:
    """Put the handler of Ctrl-C back: Lightning switches it off while it shuts down."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("_sigint")
def test_interrupt_is_one_line(monkeypatch, capsys, tmp_path, world) -> None:
    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_rlhf.datamodules.rollout.RolloutDataModule.setup", stop)
    config = write_config(tmp_path / "config.yaml", ppo_config(world, tmp_path / "run"))
    line = refused(capsys, "fit", "--config", config, code=130)
    assert "interrupted; `--ckpt_path last` resumes" in line
