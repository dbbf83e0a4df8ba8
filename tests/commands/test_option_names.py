"""Misspelt options below `trainer`, `model` and `data`: what is known of them without importing anything heavy."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest

import lit_rlhf
from lit_rlhf.commands.config_files import shipped_names
from lit_rlhf.commands.option_names import options_of, refuse_misspelt, trainer_options
from lit_rlhf.user_errors import UserError
from tests.command_line import ppo_config, refused, write_config

MODEL = ["--model", "PPOModule"]


def parameters(kind: type) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(kind).parameters)


# ---------------------------------------------------------------- what is known is what there is


@pytest.mark.parametrize("name", sorted(lit_rlhf._EXPORTS))
def test_options_are_those_of_the_signature(name: str) -> None:
    found, kind = options_of(name), getattr(lit_rlhf, name)
    if found is not None:
        assert list(found.kinds) == [key for key in parameters(kind) if key not in ("args", "kwargs")]
        assert not any(p.kind is p.VAR_KEYWORD for p in parameters(kind).values())


def test_nearly_all_that_yaml_names_is_known() -> None:
    asked = [name for name in lit_rlhf._EXPORTS if name.endswith(("Module", "Config", "Reward", "Loss", "Engine"))]
    abstract = {"BaseModule", "Reward", "PolicyLoss", "CriticLoss", "RolloutEngine"}
    assert {name for name in asked if options_of(name) is None} <= abstract
    assert options_of("lit_rlhf.modules.ppo.PPOModule") == options_of("PPOModule")
    assert options_of("my_research.PPOModule") is None


def test_the_trainers_options_are_lightnings() -> None:
    found = trainer_options()
    assert found is not None
    assert list(found.kinds) == list(parameters(L.Trainer))


@pytest.mark.parametrize("path", shipped_names().values(), ids=lambda path: path.stem)
def test_every_shipped_config_passes(path: Path) -> None:
    if "model" in path.read_text(encoding="utf-8"):
        refuse_misspelt(["fit", "--config", str(path), "--trainer.max_epochs", "1"])


# ---------------------------------------------------------------- what is refused, and what is left to the parser

WORDS: list[tuple[list[str], str]] = [
    ([*MODEL, "--model.optimiser.lr=1"], "`--model.optimiser`: PPOModule has no option `optimiser`. Did you mean: opt"),
    ([*MODEL, "--model.loss.clip_rage", "1"], "LossConfig has no option `clip_rage`. `clip_range` is an option of Cli"),
    ([*MODEL, "--model.init_args.sampling.top", "1"], "`--model.sampling.top`: SamplingConfig has no option `top`."),
    ([*MODEL, "--model.reward", "ModelReward", "--model.reward.pth", "x"], "ModelReward has no option `pth`. Did you"),
    ([*MODEL, "--model.model.adapter.rank", "3"], "AdapterConfig has no option `rank`. It has r, alpha, "),
    ([*MODEL, "--model", "{polcy: x}"], "`--model.polcy`: PPOModule has no option `polcy`. Did you mean: policy"),
    ([*MODEL, "--model.loss", "{vf_coeff: 1}"], "`--model.loss.vf_coeff`: LossConfig has no option `vf_coeff`. Did"),
    (["--trainer.callbacks+", "CollapseDetector", "--trainer.callbacks.acton", "warn"], "Did you mean: action?"),
    (["--trainer.max_epoch=3"], "`--trainer.max_epoch`: Trainer has no option `max_epoch`. Did you mean: max_epochs"),
    (["--data", "SFTDataModule", "--data.max_lenght", "8"], "SFTDataModule has no option `max_lenght`. Did you mean: "),
]


@pytest.mark.parametrize(("words", "told"), WORDS, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_words_that_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        refuse_misspelt(["fit", *words])
    assert told in str(error.value)


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"model": {"init_args": {"optimiser": {"lr": 1}}}}, "`model.optimiser`: PPOModule has no option `optimiser`."),
    ({"model": {"optimiser": {"lr": 1}}}, "Options of PPOModule stand below `init_args`. Did you mean: optimizer?"),
    ({"model": {"init_args": {"loss": {"vf_coeff": 1}}}}, "`model.loss.vf_coeff`: LossConfig has no option"),
    ({"model": {"init_args": {"reward": {"path": "x"}}}}, "Options of ModelReward stand below `init_args`."),
    ({"data": {"init_args": {"trian": "x"}}}, "`data.trian`: RolloutDataModule has no option `trian`. Did you mean: t"),
    ({"trainer": {"max_epoch": 1}}, "`trainer.max_epoch`: Trainer has no option"),
    ({"trainer": {"callbacks": [{"class_path": "SampleLogger", "init_arg": {}}]}}, "Did you mean: init_args"),
]


def merged(into: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    for key, value in more.items():
        into[key] = merged(into[key], value) if isinstance(value, dict) and key in into else value
    return into


@pytest.mark.parametrize(("change", "told"), CONFIGS, ids=str)
def test_configs_that_are_refused(change: dict[str, Any], told: str, world: Path, tmp_path: Path, capsys) -> None:
    path = write_config(tmp_path / "c.yaml", merged(ppo_config(world, tmp_path / "run"), change))
    line = refused(capsys, "fit", "--config", path)
    assert line.startswith(f"lit-rlhf: {path}: ")
    assert told in line


def test_options_without_a_class(tmp_path: Path, capsys) -> None:
    path = write_config(tmp_path / "c.yaml", {"model": {"policy": "x"}})
    assert "Name the class, `class_path: PPOModule` for example" in refused(capsys, "fit", "--config", path)
    path = write_config(tmp_path / "c.yaml", {"data": {"class_pth": "x"}})
    assert "Did you mean: class_path?" in refused(capsys, "fit", "--config", path)


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "my_research.Mine", "--model.anything", "1"],
        ["--model.optimiser.lr", "1"],  # of a class that an environment variable names, perhaps
        [*MODEL, "--model.reward.anything", "1"],
        [*MODEL, "--model.reward", "my_rewards.Mine", "--model.reward.anything", "1"],
        [*MODEL, "--model.reward.help", "PythonReward"],
        [*MODEL, "--model.eval_rewards", "{mine: {class_path: LengthReward}}"],
        [*MODEL, "--model.engine.dict_kwargs.x", "1"],
        ["--trainer.callbacks", "lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor", "x"],
        ["--trainer.callbacks+", "CollapseDetector", "--trainer.callbacks+", "my.Mine", "--trainer.callbacks.x", "1"],
        [*MODEL, "--model", "{policy: x}"],
        [*MODEL, "--model.init_args", "{policy: x, loss: {vf_coef: 1}}"],
        [*MODEL, "--model.policy_loss", "ClippedSurrogate", "--model.policy_loss", "{clip_range: 0.3}"],
        [*MODEL, "--model.policy_loss", "ClippedSurrogate", "--model.policy_loss.init_args", "{clip_range: 0.3}"],
        ["--seed_everything", "1", "--config", "https://host/config.yaml"],
        [*MODEL, "--model.optimizer.lr", "-1e-4", "--model.loss", "{not yaml"],
    ],
    ids=" ".join,
)
def test_what_is_not_known_is_left_to_the_parser(words: list[str]) -> None:
    refuse_misspelt(["fit", *words])


def test_a_class_that_a_later_config_names_is_the_one(tmp_path: Path) -> None:
    first = write_config(tmp_path / "a.yaml", {"model": {"class_path": "SFTModule", "init_args": {"policy": "x"}}})
    second = write_config(tmp_path / "b.yaml", {"model": {"class_path": "PPOModule", "init_args": {"loss": {}}}})
    refuse_misspelt(["fit", "--config", first, "--config", second, "--model.loss.vf_coef", "1"])
    with pytest.raises(UserError, match="SFTModule has no option `loss`"):
        refuse_misspelt(["fit", "--config", second, f"--config={first}", "--model.loss.vf_coef", "1"])


@pytest.mark.parametrize("change", [{"policy": "y"}, {"init_args": {"policy": "y"}}], ids=str)
def test_a_later_config_needs_not_name_the_class_again(change: dict[str, Any], tmp_path: Path) -> None:
    first = write_config(tmp_path / "a.yaml", {"model": {"class_path": "SFTModule", "init_args": {"policy": "x"}}})
    second = write_config(tmp_path / "b.yaml", {"model": change})
    refuse_misspelt(["fit", "--config", first, "--config", second])


def test_nothing_heavy_is_imported(world: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path / "c.yaml", ppo_config(world, tmp_path / "run"))
    code = (
        f"import sys\nfrom lit_rlhf.cli import main\ntry:\n    main(['fit', '-c', {path!r}, '--model.los.x', '1'])\n"
        "finally:\n    print(sorted(set(sys.modules) & {'torch', 'lightning', 'transformers', 'jsonargparse'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip()) == (2, "[]")
    assert found.stderr == "lit-rlhf: `--model.los`: PPOModule has no option `los`. Did you mean: loss?\n"
