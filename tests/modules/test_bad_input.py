"""What cannot work is refused before training, in one line, and leaves nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from tests.command_line import files_under, ppo_config, refused, write_config
from tests.models.tiny import make_tokenizer
from tests.modules.tiny_ppo import CHAT_TEMPLATE, LETTERS, make_data, make_ppo, make_trainer

Edit = Callable[[dict[str, Any], Path], None]


def save_tokenizer(folder: Path, letters: str = LETTERS, **special: Any) -> None:
    tokenizer = make_tokenizer(letters)
    tokenizer.chat_template = CHAT_TEMPLATE
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)


def copied(config: dict[str, Any], name: str, folder: Path) -> Path:
    """A copy of the policy's or the reward model's folder that the config then names."""
    args = config["model"]["init_args"]
    at = args if name == "policy" else args["reward"]["init_args"]
    key = "policy" if name == "policy" else "path"
    shutil.copytree(at[key], folder / name)
    at[key] = str(folder / name)
    return folder / name


def no_eos(config: dict[str, Any], folder: Path) -> None:
    save_tokenizer(copied(config, "policy", folder), eos_token=None)


def unknown_pad(config: dict[str, Any], folder: Path) -> None:
    config["model"]["init_args"]["model"] = {"pad_token": "<nowhere>"}


def short_context(config: dict[str, Any], folder: Path) -> None:
    path = copied(config, "policy", folder)
    model = AutoConfig.from_pretrained(path)
    model.max_position_embeddings = 12
    model.save_pretrained(path)


def empty_prompts(config: dict[str, Any], folder: Path) -> None:
    (folder / "empty.jsonl").write_text("")
    config["data"]["init_args"]["train"] = str(folder / "empty.jsonl")


def only_bad_rows(config: dict[str, Any], folder: Path) -> None:
    (folder / "bad.jsonl").write_text(json.dumps({"question": "a"}) + "\n")
    config["data"]["init_args"]["train"] = str(folder / "bad.jsonl")


def other_vocabulary(config: dict[str, Any], folder: Path) -> None:
    # As many tokens, in another order: nothing but the names tells.
    save_tokenizer(copied(config, "reward", folder), LETTERS[::-1])


def other_reference(config: dict[str, Any], folder: Path) -> None:
    policy = config["model"]["init_args"]["policy"]
    shutil.copytree(policy, folder / "reference")
    save_tokenizer(folder / "reference", LETTERS[::-1])
    config["model"]["init_args"]["reference"] = str(folder / "reference")


def no_response(config: dict[str, Any], folder: Path) -> None:
    config["model"]["init_args"]["sampling"]["max_response_length"] = 0


def few_prompts(config: dict[str, Any], folder: Path) -> None:
    config["data"]["init_args"]["rollout_batch_size"] = 64


def critic_of_a_program(config: dict[str, Any], folder: Path) -> None:
    config["model"]["init_args"]["reward"] = {
        "class_path": "PythonReward",
        "init_args": {"function": "tests.rewards.scorers:length"},
    }
    config["model"]["init_args"]["critic"] = {"init": "reward"}


CASES: list[tuple[Edit, list[str]]] = [
    (no_eos, ["no EOS"]),
    (unknown_pad, ["`model.pad_token` ('<nowhere>')", "vocabulary"]),
    (short_context, ["`max_response_length`", "(12 tokens)", "`data.max_prompt_length`"]),
    (empty_prompts, ["empty.jsonl"]),
    (only_bad_rows, ["bad.jsonl"]),
    (other_vocabulary, ["must share one vocabulary", "token"]),
    (other_reference, ["must share one vocabulary", "reference"]),
    (no_response, ["`max_response_length`", ">= 1"]),
    (few_prompts, ["`rollout_batch_size` (64)", "`train` holds 32"]),
    (critic_of_a_program, ["`critic.init: reward`", "PythonReward"]),
]


@pytest.mark.parametrize(("edit", "told"), CASES, ids=[edit.__name__ for edit, _ in CASES])
def test_is_refused_before_any_model_loads(edit, told, world, tmp_path, monkeypatch, capsys) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("lit_rlhf.models.loading.pretrained.check_weights_are_plain", load)
    (tmp_path / "inputs").mkdir()
    config = ppo_config(world, tmp_path / "run")
    edit(config, tmp_path / "inputs")
    line = refused(capsys, "fit", "--config", write_config(tmp_path / "config.yaml", config))
    assert [part for part in told if part not in line] == [], line
    written = files_under(tmp_path / "run") if (tmp_path / "run").exists() else set()
    assert {name for name in written if name.startswith(("checkpoints", "export", "evaluations"))} == set()


def test_a_context_that_just_fits_is_taken(world, tmp_path) -> None:
    shutil.copytree(world / "policy", tmp_path / "policy")
    config = AutoConfig.from_pretrained(tmp_path / "policy")

    def setup(limit: int) -> int:
        """Set up the data for a model with ``limit`` positions; the longest prompt."""
        config.max_position_embeddings = limit
        config.save_pretrained(tmp_path / "policy")
        data, trainer = make_data(world), make_trainer(tmp_path)
        data.trainer = trainer
        trainer.strategy.connect(make_ppo(world, policy=str(tmp_path / "policy")))
        data.setup("fit")
        return max(len(prompt.ids) for prompt in data._prompts["train"])

    needed = setup(128) + 10
    setup(needed)
    with pytest.raises(ValueError, match=rf"\({needed} tokens\) must fit the model's context \({needed - 1} tokens\)"):
        setup(needed - 1)
