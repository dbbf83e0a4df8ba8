"""What a study's YAML may say, and which commands in which order come of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_rlhf.cli import main
from lit_rlhf.commands.config_files import shipped_names
from lit_rlhf.commands.study import read_study
from lit_rlhf.studies.plan import (
    Claim,
    Figure,
    Judging,
    Quality,
    Step,
    Study,
    Task,
    config,
    done,
    identity,
    tasks,
    words,
)

ARM = Step(config="pocket/ppo_max")


def study(**changes: Any) -> Study:
    given: dict[str, Any] = {
        "seeds": [1, 2],
        "root": "runs/pocket",
        "prepare": {
            "data": Step(run="pocket make {here}/data --seed {seed}", made="data/base"),
            "sft": Step(config="pocket/sft"),
            "other": Step(config="pocket/sft", needs=["data"]),
        },
        "needs": ["sft"],
        "arms": {"a": ARM, "b": dataclasses.replace(ARM, set={"model.kl_controller.coef": 0.1}, seeds=[2])},
    }
    return Study(**{**given, **changes})


def test_an_arm_comes_after_what_it_needs_and_nothing_else_is_prepared() -> None:
    found = tasks(study())
    assert found == [
        Task(seed=s, name=n)
        for s, n in [(1, "data"), (1, "sft"), (1, "a"), (2, "data"), (2, "sft"), (2, "a"), (2, "b")]
    ]
    assert tasks(study(), seeds=[2], arms=["b"]) == [Task(seed=2, name=name) for name in ("data", "sft", "b")]


def test_opponents_are_prepared_for_every_judged_arm() -> None:
    judging = Judging(opponents="other", score="gold")
    assert Task(seed=1, name="other") in tasks(study(judging=judging), arms=["a"])


def test_words_hold_the_seed_its_folder_and_the_options_of_study_and_arm() -> None:
    found = study(set={"data.val": "{here}/data/val.jsonl", "model.kl_controller.coef": 0.5})
    here = Path("runs/x/seed2")
    assert words(found, Task(seed=2, name="data"), here) == ["pocket", "make", "runs/x/seed2/data", "--seed", "2"]
    assert words(found, Task(seed=2, name="sft"), here)[-2:] == ["--ckpt_path", "last"]
    said = words(found, Task(seed=2, name="b"), here)
    assert said[:3] == ["fit", "--config", "runs/x/seed2/configs/b.yaml"]
    assert said[said.index("--seed_everything") + 1] == said[said.index("--data.seed") + 1] == "2"
    assert said[said.index("--data.val") + 1] == "runs/x/seed2/data/val.jsonl"
    assert said[said.index("--model.kl_controller.coef") + 1] == "0.1"  # the arm's own, once
    assert said.count("--model.kl_controller.coef") == 1


def test_a_value_that_is_none_or_a_list_is_said_in_yaml() -> None:
    arm = dataclasses.replace(ARM, set={"x": None, "y": ["{here}/a"], "z": True})
    said = words(study(arms={"a": arm}), Task(seed=1, name="a"), Path("here"))
    assert [said[said.index(key) + 1] for key in ("--x", "--y", "--z")] == ["null", '["here/a"]', "true"]


def test_the_config_of_a_seed_lies_in_its_folder_without_the_dropped_callbacks(tmp_path: Path) -> None:
    text = shipped_names()["pocket/ppo_max"].read_text(encoding="utf-8")
    arm = dataclasses.replace(ARM, drop_callbacks=["CriticWarmup"])
    found = config(study(arms={"a": arm}), Task(seed=1, name="a"), text, tmp_path)
    assert found["trainer"]["default_root_dir"] == f"{tmp_path}/a"
    assert found["model"]["init_args"]["policy"] == f"{tmp_path}/sft/export/final"
    before = [each["class_path"] for each in yaml.safe_load(text)["trainer"]["callbacks"]]
    after = [each["class_path"] for each in found["trainer"]["callbacks"]]
    assert after == [name for name in before if name != "CriticWarmup"] != before
    wrong = dataclasses.replace(ARM, drop_callbacks=["Nobody"])
    with pytest.raises(ValueError, match=r"`a.drop_callbacks`: pocket/ppo_max has no callback Nobody"):
        config(study(arms={"a": wrong}), Task(seed=1, name="a"), text, tmp_path)


def test_done_is_what_was_made(tmp_path: Path) -> None:
    task = Task(seed=1, name="a")
    assert not done(study(), task, tmp_path)
    (tmp_path / "a" / "export" / "final").mkdir(parents=True)
    assert not done(study(), task, tmp_path)
    (tmp_path / "a" / "export" / "final" / "config.json").touch()
    assert done(study(), task, tmp_path)
    assert not done(study(), Task(seed=1, name="data"), tmp_path)
    (tmp_path / "data" / "base").mkdir(parents=True)
    assert done(study(), Task(seed=1, name="data"), tmp_path)


def test_identity_is_what_moves_results() -> None:
    one = identity(study(), "a")
    assert one == identity(study(arms={"a": dataclasses.replace(ARM, title="A", minutes=3, seeds=[7])}), "a")
    assert one != identity(study(set={"model.loss.vf_coef": 0.1}), "a")
    assert one != identity(study(arms={"a": dataclasses.replace(ARM, drop_callbacks=["X"])}), "a")


def quality(steps: dict[str, str]) -> dict[str, list[Figure]]:
    return {"figures": [Figure(title="F", arms=["a"], quality=Quality(steps=steps, x="val/accuracy", y="val/gold"))]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "A study needs `seeds` and `arms`."),
        ({"seeds": [1, 1]}, r"`seeds` \(1, 1\) names a seed twice."),
        ({"arms": {"a": dataclasses.replace(ARM, seeds=[3, 3])}}, r"`a.seeds` \(3, 3\) names a seed twice."),
        ({"figures": [Figure(title="F", arms=["a"], frontier=["val/kl"])]}, "`frontier` needs two measures"),
        ({"figures": [Figure(title="F", arms=["a"]), Figure(title="F", arms=["a"])]}, "two of the title 'F'"),
        (quality({}), "`quality.steps` names no arm"),
        (quality({"b": "sft"}), "`quality.steps` names 'b', which is none of a"),
        (quality({"a": "rm"}), "`quality.steps` names 'rm', which is none of data, sft, other"),
        ({"arms": {"a": dataclasses.replace(ARM, set={"ckpt_path": "x"})}}, "a `fit` resumes from its own last"),
        ({"arms": {"a": Step(run="score {her}/x", made="y")}}, r"`a`: \{her\} stands for nothing; there are \{here\}"),
        ({"arms": {"data": ARM}}, "`prepare` and `arms` both have 'data'"),
        ({"arms": {"a/b": ARM}}, "'a/b' is no name of a step"),
        ({"arms": {"a": Step()}}, "`a` needs `config` or `run`"),
        ({"arms": {"a": Step(config="x", run="y", made="z")}}, "`a` needs `config` or `run`"),
        ({"arms": {"a": Step(run="report x")}}, "`a` needs `made`: what is there when `report x` is done?"),
        ({"arms": {"a": Step(config="x", verb="test")}}, "`a` needs `made`: what is there when `test` is done?"),
        ({"arms": {"a": Step(run="x", made="y", drop_callbacks=["z"])}}, "and `verb` are for a `config`"),
        ({"needs": ["rm"]}, "`a.needs` names 'rm', which is none of data, sft, other."),
        ({"judging": Judging(opponents="rm", score="gold")}, "`judging.opponents` names 'rm'"),
        ({"figures": [Figure(title="F", arms=["c"])]}, "figure 'F' names 'c', which is none of a, b."),
        (
            {"figures": [Figure(title="F", arms=["a"], claims=[Claim(says="x", arm="a", against="c")])]},
            "figure 'F' names 'c'",
        ),
        (
            {"prepare": {"x": Step(config="c", needs=["y"]), "y": Step(config="c", needs=["x"])}, "needs": ["x"]},
            "`prepare`: x needs y needs x.|`prepare`: y needs x needs y.",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changes).check()


def test_names_on_the_command_line_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"`--arms` names 'c', which is none of a, b\."):
        tasks(study(), arms=["c"])
    with pytest.raises(ValueError, match="leave nothing to run"):
        tasks(study(), seeds=[1], arms=["b"])
    with pytest.raises(ValueError, match="`--seeds` names 7, which no arm has; the seeds are 1, 2"):
        tasks(study(), seeds=[1, 7])


def test_the_shipped_study_names_configs_that_ship_and_settings_that_exist() -> None:
    found, name = read_study("pocket/study")
    assert name == "study"
    for each, step in found.steps():
        assert step.config is None or step.config in shipped_names(), each
    for figure in found.figures:
        assert len(figure.arms) <= 7, figure.title
    drawn = {arm for figure in found.figures for arm in figure.arms}
    assert drawn == set(found.arms)  # no arm is run for nothing


def test_every_step_of_the_shipped_study_is_a_command_that_makes_its_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = read_study("pocket/study")
    for name, step in found.steps():
        if step.config is not None:
            task, text = Task(seed=1, name=name), shipped_names()[step.config].read_text(encoding="utf-8")
            (tmp_path / "configs").mkdir(exist_ok=True)
            content = yaml.safe_dump(config(found, task, text, tmp_path))
            (tmp_path / "configs" / f"{name}.yaml").write_text(content, encoding="utf-8")
            with pytest.raises(SystemExit):
                main(words(found, task, tmp_path))
            # Every class was made, and what is missing is what earlier steps leave.
            missing = ("lit-rlhf: No model folder at", "lit-rlhf: `ckpt_path`: there is no checkpoint at")
            assert capsys.readouterr().err.startswith(missing), name


def test_an_unknown_key_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.yaml").write_text("seeds: [1]\narms: {a: {config: pocket/sft, sett: {x: 1}}}\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        read_study(str(tmp_path / "s.yaml"))
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "sett" in error
    assert len(error.strip().splitlines()) == 1
