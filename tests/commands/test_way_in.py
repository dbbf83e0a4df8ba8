"""The first minutes of a new user at the command line: help, presets, `null`, own modules, names that are misspelt."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

import lit_rlhf
from lit_rlhf.cli import with_shipped_configs
from lit_rlhf.commands.config_files import shipped_config, shipped_configs, shipped_names
from lit_rlhf.commands.training_help import training_help
from lit_rlhf.user_errors import message_for_user
from tests.command_line import ended, ppo_config, refused, write_config

HEAVY = ("torch", "lightning", "transformers", "jsonargparse")


@pytest.fixture
def config(world: Path, tmp_path: Path) -> str:
    given = ppo_config(world, tmp_path / "run")
    args = given["model"]["init_args"]
    args["shaping"] = {"normalize": False, "clip": 0.3, "missing_eos_penalty": 1.0}
    args["critic_loss"] = {"class_path": "ClippedValueLoss", "init_args": {"clip_range": 0.1}}
    return write_config(tmp_path / "config.yaml", given)


def shown(capsys: Any, config: str, *words: str) -> dict[str, Any]:
    """The model's options as `--print_config` shows them."""
    found = ended(capsys, "fit", "--config", config, *words, "--print_config")
    assert found.code == 0, found.err
    options: dict[str, Any] = yaml.safe_load(found.out)["model"]["init_args"]
    return options


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("null", ["null", "None"])
def test_null_works_in_groups_and_classes_and_leaves_the_rest(null: str, config: str, capsys) -> None:
    words = ["--model.shaping.clip", null, f"--model.shaping.missing_eos_penalty={null}", "--model.reference", null]
    options = shown(capsys, config, *words, "--model.critic_loss.clip_range", null, "--model.model.pad_token", null)
    assert (options["shaping"]["clip"], options["shaping"]["missing_eos_penalty"]) == (None, None)
    assert options["shaping"]["normalize"] is False
    assert options["critic_loss"]["init_args"]["clip_range"] is None
    assert (options["reference"], options["model"]["pad_token"]) == (None, None)


def test_a_negative_number_with_an_exponent_is_a_value(config: str, capsys) -> None:
    line = refused(capsys, "fit", "--config", config, "--model.optimizer.lr", "-1e-4")
    assert line == "lit-rlhf: `lr` (-0.0001) must not be negative."


@pytest.mark.parametrize("value", [0.8, [1]])
def test_a_value_in_the_place_of_a_group(value: Any, world: Path, tmp_path: Path, capsys) -> None:
    given = ppo_config(world, tmp_path / "run")
    given["model"]["init_args"]["sampling"] = value
    line = refused(capsys, "fit", "--config", write_config(tmp_path / "c.yaml", given))
    assert line == f"lit-rlhf: `model.sampling` ({value}) must be a mapping of options, those of SamplingConfig."


SHORT: list[tuple[list[str], str]] = [
    (["--trainer.precision", "half"], "`trainer.precision`: half is none of transformer-engine, "),
    (["--trainer.strategy", "ddpp"], "invalid strategy name: `strategy='ddpp'`"),
    (["--trainer.strategy", "lit_deepspeed_stage_2"], "only supported on CUDA GPUs"),
    (["--trainer.accelerator", "gpu"], "No supported gpu backend found"),
    (
        ["--trainer.strategy", "fsdp"],
        "`trainer.strategy` (fsdp) is not supported: use `ddp`, or `lit_deepspeed_stage_2`",
    ),
    (["--trainer.strategy", "deepspeed_stage_3"], "`trainer.strategy` (deepspeed_stage_3) is not supported"),
    (["--model.help"], "`--model.help` needs a class: PPOModule, RewardModelModule, SFTModule, or one of your own."),
    (["--data.help", "--print_config"], "`--data.help` needs a class: RolloutDataModule"),
    (["--trainer.devices", "many"], "should be an int > 0"),
    (["--trainer.precision", "transformer-engine"], "transformer_engine"),
    (["--model.reward", "ModlReward"], "`reward`: there is no class 'ModlReward'. Did you mean: ModelReward"),
    (["--model", "PPOModul"], "`model`: there is no class 'PPOModul'. Did you mean: PPOModule"),
    (["--trainer.callbacks", "KLMonitr"], "there is no class 'KLMonitr'. Did you mean: KLMonitor"),
    (["--model", "my_research.Mine"], "No module named 'my_research'. Modules in the current folder are found, too."),
    (["--model", "lit_rlhf.PPOModul"], "has no attribute 'PPOModul'. Did you mean: PPOModule"),
    (["--data.batch_size", "8"], "Did you mean: minibatch_size, eval_batch_size, rollout_batch_size?"),
    (["--model.kl_controller.coef", "1"], "`kl_controller`: it has no class yet, so that `coef` cannot be set"),
    (["--trainer.logger", "lightning.pytorch.loggers.CometLogger"], "comet-ml"),
]


@pytest.mark.parametrize(("words", "told"), SHORT, ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_one_short_line(words: list[str], told: str, config: str, capsys) -> None:
    line = refused(capsys, "fit", "--config", config, *words)
    assert told in line
    assert len(line) < 320


def test_warnings_of_this_library_are_one_line(config: str, monkeypatch) -> None:
    """In a process of its own: pytest shows warnings itself."""
    code = (
        "import warnings\nfrom lit_rlhf.commands.training import quiet\nquiet()\nfrom lit_rlhf.ppo import config\n"
        "warnings.warn_explicit('one\\n two', UserWarning, config.__file__, 1)\n"
        "warnings.warn_explicit('theirs', UserWarning, '/elsewhere/x.py', 1)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    own = [line for line in found.stderr.splitlines() if "one" in line]
    assert own == ["lit-rlhf warns: one two"]
    assert "/elsewhere/x.py:1: UserWarning: theirs" in found.stderr


def test_gpt2_gets_no_advice_on_masks(tmp_path: Path, monkeypatch) -> None:
    import logging

    import transformers.modeling_utils

    from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer, write_world

    small = write_world(tmp_path / "gpt2", architecture="gpt2", prompts=8)
    module = make_ppo(small, reward=lambda responses: [0.0] * len(responses))
    data = make_data(small, rollout_batch_size=8, minibatch_size=8)
    logger, told = transformers.modeling_utils.logger, list[str]()
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: told.append(record.getMessage()))
    type(logger).warning_once.cache_clear()
    logger.addHandler(handler)
    make_trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(module, data)
    logger.warning("another")
    logger.removeHandler(handler)
    assert told == ["another"]


def test_data_of_another_stage(world: Path, tmp_path: Path, capsys) -> None:
    given = ppo_config(world, tmp_path / "run")
    given["data"] = {"class_path": "SFTDataModule", "init_args": {"train": str(world / "texts.jsonl")}}
    line = refused(capsys, "fit", "--config", write_config(tmp_path / "c.yaml", given))
    assert line == "lit-rlhf: PPOModule works on a Minibatch; SFTDataModule gives a TextBatch."


def failing(prompts: list[str], responses: list[str]) -> list[float]:
    raise KeyError("answer")


def test_a_reward_that_raises_names_its_line(config: str, capsys) -> None:
    reward = '{"class_path": "PythonReward", "init_args": {"function": "tests.commands.test_way_in:failing"}}'
    line = refused(capsys, "fit", "--config", config, "--model.reward", reward)
    assert "raised KeyError: 'answer' for prompt" in line
    number = failing.__code__.co_firstlineno + 1
    assert line.endswith(f"(test_way_in.py, line {number}).")


def raised_in(module: str, error: type[Exception]) -> Exception:
    """An error as if code of ``module`` had raised it."""
    file = sys.modules[module].__file__
    try:
        exec(compile(f"raise {error.__name__}('x')", str(file), "exec"))
    except Exception as found:
        while found.__traceback__ is not None and found.__traceback__.tb_next is not None:
            found.__traceback__ = found.__traceback__.tb_next
        return found
    raise AssertionError


@pytest.mark.parametrize(
    ("module", "error", "told"),
    [
        ("lightning", RuntimeError, True),
        ("lightning", NotImplementedError, True),
        ("lightning", KeyError, False),
        ("torch", RuntimeError, False),
        ("lit_rlhf", ValueError, True),
        ("lit_rlhf", RuntimeError, False),
    ],
)
def test_whose_errors_are_for_users(module: str, error: type[Exception], told: bool) -> None:
    import lightning  # noqa: F401

    assert (message_for_user(raised_in(module, error)) == "x") is told


def test_a_missing_package_is_for_users_and_a_slip_is_not() -> None:
    assert message_for_user(ModuleNotFoundError("No module named 'wandb'", name="wandb")) is not None
    assert message_for_user(ModuleNotFoundError("No module named 'lit_rlhf.x'", name="lit_rlhf.x")) is None


# ---------------------------------------------------------------- help, presets, own modules


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "predict"])
def test_help_is_one_screen_without_imports(verb: str) -> None:
    code = (
        f"import sys; from lit_rlhf.cli import main; main([{verb!r}, '--help']); "
        f"print(sorted(set(sys.modules) & {set(HEAVY)!r}), file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stderr.strip() == "[]"
    assert found.stdout == training_help(verb)
    assert len(found.stdout.splitlines()) < 40


def test_every_name_in_the_help_exists() -> None:
    words = set(re.findall(r"\b[A-Z]+[a-z]+[A-Z]\w+", training_help("fit"))) - {"MyClass", "PyTorch"}
    assert words <= set(lit_rlhf.__all__) | {"CLASS"}
    pages = re.findall(r"docs/\w+\.md", training_help("fit"))
    root = Path(__file__).resolve().parents[2]
    assert [page for page in pages if not (root / page).is_file()] == []


def test_a_bad_config_is_refused_before_anything_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom lit_rlhf.cli import main\ntry:\n    main(['fit', '--config', 'nowhere.yaml'])\n"
        f"finally:\n    print(sorted(set(sys.modules) & {set(HEAVY)!r}))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip()) == (2, "[]")
    assert "nowhere.yaml" in found.stderr


REFUSED_AT_ONCE = [
    "fit --modl x",
    "fit --config {c} --trainr.devices 1",
    "plan --config nowhere.yaml",
    "test --mdoel=x",
]


@pytest.mark.parametrize("line", REFUSED_AT_ONCE)
def test_a_misspelt_option_is_refused_before_anything_is_imported(line: str, config: str) -> None:
    words = line.format(c=config).split()
    code = (
        f"import sys\nfrom lit_rlhf.cli import main\ntry:\n    main({words!r})\n"
        f"finally:\n    print(sorted(set(sys.modules) & {set(HEAVY)!r}))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (found.returncode, found.stdout.strip()) == (2, "[]")
    assert len(found.stderr.splitlines()) == 1
    assert "nowhere.yaml" in found.stderr or "Did you mean" in found.stderr


def test_the_options_known_beforehand_are_those_of_the_parser(capsys) -> None:
    from lit_rlhf.cli import TRAINING, TRAINING_OPTIONS

    found: set[str] = set()
    for verb in TRAINING:
        words = ended(capsys, verb, "--seed_everything", "1", "--help").out
        found |= set(re.findall(r"[\[ ](--[a-z_]+)", words))
    assert found - {"--help"} <= set(TRAINING_OPTIONS)
    assert {"--model", "--data", "--config"} <= found


def test_a_first_word_comes_on_a_terminal_before_the_imports(config: str) -> None:
    import pty

    master, terminal = pty.openpty()
    code = (
        "import sys\nfrom lit_rlhf import cli\n"
        f"cli.import_module = lambda name: print(sorted(set(sys.modules) & {set(HEAVY)!r}))\n"
        f"cli.main(['fit', '--config', {config!r}])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, stdout=subprocess.PIPE, stderr=terminal, text=True
    )
    assert os.read(master, 1000).decode().splitlines()[0] == "lit-rlhf fit: starting"
    assert found.stdout.strip() == "[]"
    os.close(master), os.close(terminal)


@pytest.mark.parametrize("name", ["ppo_max", "presets/ppo_max", "ppo_max.yaml", "presets/ppo_max.yaml"])
def test_presets_by_name(name: str) -> None:
    assert shipped_config(name) == shipped_configs() / "presets" / "ppo_max.yaml"


def test_configs_lists_and_prints(capsys) -> None:
    listed = ended(capsys, "configs").out
    assert [name for name in shipped_names() if f"{name} " not in listed] == []
    assert ended(capsys, "configs", "pocket/sft").out == (shipped_configs() / "pocket" / "sft.yaml").read_text()
    assert "Did you mean: ppo_max" in refused(capsys, "configs", "ppomax")
    assert "several configs 'sft': llama7b/sft, pocket/sft" in refused(capsys, "configs", "sft")


def test_preset_stands_for_a_path_after_config_alone() -> None:
    path = str(shipped_config("vanilla"))
    words = ["fit", "--config", "preset:vanilla", "--config=preset:vanilla", "-c", "preset:vanilla"]
    assert with_shipped_configs(words) == ["fit", "--config", path, f"--config={path}", "-c", path]
    other = ["score", "--model", "preset:vanilla", "preset:vanilla"]
    assert with_shipped_configs(other) == other


def test_a_preset_and_a_config(config: str, capsys) -> None:
    found = ended(capsys, "fit", "--config", "preset:ppo_max", "--config", config, "--print_config")
    assert yaml.safe_load(found.out)["model"]["init_args"]["shaping"]["clip"] == 0.3
    assert "Did you mean: ppo_max" in refused(capsys, "fit", "--config", "preset:ppo_mx")


def test_modules_of_the_current_folder_are_found(config: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """As from the console script, which does not look there itself."""
    (tmp_path / "my_own_ppo.py").write_text("from lit_rlhf import PPOModule\n\n\nclass Mine(PPOModule):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    assert "policy" in shown(capsys, config, "--model", "my_own_ppo.Mine")
    assert sys.path[-1] == str(tmp_path), "it must hide nothing"


HOOK = "from lit_rlhf.callbacks import RolloutCallback\nclass Mine(RolloutCallback):\n    def on_rollout(self): ...\n"


@pytest.mark.parametrize(
    ("source", "told"),
    [("class Mine(\n", "was never closed"), (HOOK, "`Mine.on_rollout` is no hook: did you mean `on_rollout_end`?")],
)
def test_what_is_wrong_with_a_class_of_ones_own_is_said(
    source: str, told: str, config: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    name = f"mine_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    line = refused(capsys, "fit", "--config", config, "--trainer.callbacks+", f"{name}.Mine")
    assert told in line
    assert "none of" not in line
    assert "Errors:" not in line


def test_a_value_that_a_class_of_ones_own_refuses_is_its_own_line(
    config: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    source = """
        from lit_rlhf.ppo.losses import ClippedSurrogate
        class Refuses(ClippedSurrogate):
            def __init__(self, c: float = 3.0):
                super().__init__()
                if c <= 1:
                    raise ValueError(f"`c` ({c}) must be above 1.")
    """
    (tmp_path / "my_refusing.py").write_text(textwrap.dedent(source), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--model.policy_loss", "my_refusing.Refuses", "--model.policy_loss.c", "0.5"]
    assert refused(capsys, "fit", "--config", config, *words) == "lit-rlhf: Refuses: `c` (0.5) must be above 1."
