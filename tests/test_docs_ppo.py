"""docs/ppo.md names options that exist, with the defaults and the presets they really have."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_rlhf.callbacks import CriticWarmup
from lit_rlhf.config import ScheduleConfig
from lit_rlhf.datamodules.rollout import RolloutDataModule
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import (
    CriticConfig,
    LossConfig,
    PPOOptimizerConfig,
    PTXConfig,
    ReferenceConfig,
    ShapingConfig,
)
from lit_rlhf.ppo.estimators import GAE
from lit_rlhf.ppo.kl_controller import FixedKL
from lit_rlhf.ppo.losses import ClippedSurrogate, ClippedValueLoss
from lit_rlhf.rollout.sampling import SamplingConfig

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
CHOSEN = {
    "kl_controller": FixedKL,
    "estimator": GAE,
    "policy_loss": ClippedSurrogate,
    "critic_loss": ClippedValueLoss,
}  # what `class_path` is where none is given
GROUPS = {
    "loss": LossConfig,
    "shaping": ShapingConfig,
    "critic": CriticConfig,
    "optimizer": PPOOptimizerConfig,
    "schedule": ScheduleConfig,
    "sampling": SamplingConfig,
    "data.ptx": PTXConfig,
    "reference": ReferenceConfig,
}
REQUIRED = inspect.Parameter.empty


def tables(column: str) -> list[dict[str, str]]:
    """Rows of every table of the page that has a column called ``column``, as dicts."""
    found, head = [], []
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            head = []
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not head:
            head = cells
        elif column in head and not set(line) <= set("|- "):
            assert len(cells) == len(head), line
            found.append(dict(zip(head, cells, strict=True)))
    return found


def code(cell: str) -> str:
    match = re.fullmatch(r"`([^`]+)`", cell)
    assert match, cell
    return match[1]


def value(cell: str) -> Any:
    return REQUIRED if cell == "required" else yaml.safe_load(code(cell))


def default_of(path: str) -> Any:
    """The default of an option; fails for one that does not exist."""
    if path.startswith("CriticWarmup."):
        return inspect.signature(CriticWarmup).parameters[path.removeprefix("CriticWarmup.")].default
    if path.startswith("data.ptx."):
        (field,) = [f for f in dataclasses.fields(PTXConfig) if f.name == path.removeprefix("data.ptx.")]
        return REQUIRED if field.default is dataclasses.MISSING else field.default
    if path.startswith("data."):
        return inspect.signature(RolloutDataModule).parameters[path.removeprefix("data.")].default
    first, *rest = path.split(".")
    top = inspect.signature(PPOModule).parameters[first]
    if not rest:
        return top.default
    if rest[0] == "init_args":
        return inspect.signature(CHOSEN[first]).parameters[rest[1]].default
    assert str(GROUPS[first].__name__) in str(top.annotation)
    (field,) = [f for f in dataclasses.fields(GROUPS[first]) if f.name == rest[0]]
    given = top.default
    if dataclasses.is_dataclass(given):
        return getattr(given, rest[0])
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def same(documented: Any, actual: Any) -> bool:
    return documented == (list(actual) if isinstance(actual, tuple) else actual)


DEFAULTS = {code(row["option"]): row["default"] for row in tables("default")}


@pytest.mark.parametrize("path", DEFAULTS)
def test_option_exists_with_the_documented_default(path: str) -> None:
    assert same(value(DEFAULTS[path]), default_of(path)), default_of(path)


def test_the_check_can_fail() -> None:
    for wrong in ("loss.vf_coeff", "kl_controller.init_args.target", "data.batch", "nothing"):
        with pytest.raises((KeyError, ValueError)):
            default_of(wrong)
    assert not same(0.3, default_of("loss.vf_coef"))


def test_all_twelve_details_are_there() -> None:
    numbers = {row["#"].rstrip("*") for row in tables("detail")}
    assert numbers == {str(i) for i in range(1, 13)}


def test_no_option_of_a_group_is_left_out() -> None:
    every = {f"{name}.{field.name}" for name, group in GROUPS.items() for field in dataclasses.fields(group)}
    assert not every - set(DEFAULTS)


def test_every_module_option_is_named_somewhere() -> None:
    names = set(inspect.signature(PPOModule).parameters) - {"engine", "model", "eval_rewards", "reward"}
    assert not [name for name in names if not re.search(rf"`{name}[.`:]", PAGE)]


@pytest.mark.parametrize("preset", ["vanilla", "ppo_max", "moss_release"])
def test_preset_table_is_what_the_files_say(preset: str) -> None:
    config = yaml.safe_load((ROOT / "configs" / "presets" / f"{preset}.yaml").read_text(encoding="utf-8"))
    options = config["model"]["init_args"]
    rows = tables(preset)
    assert rows
    for row in rows:
        path = code(row["option"])
        found: Any = options
        for part in path.split("."):
            found = found.get(part, default_of(path)) if isinstance(found, dict) else found
        assert value(row[preset]) == found, path
    callbacks = [c["class_path"] for c in config["trainer"].get("callbacks", [])]
    assert (preset == "ppo_max") == ("CriticWarmup" in callbacks) == ("ptx" in config["data"]["init_args"])


def test_literal_values_that_the_page_uses_are_allowed() -> None:
    hints = typing.get_type_hints(LossConfig)
    for name in ("average", "old_logprobs"):
        for choice in typing.get_args(hints[name]):
            assert f"`{choice}`" in PAGE or f"{name}: {choice}`" in PAGE, choice
