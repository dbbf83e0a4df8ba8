"""Every config that ships runs through the real command line, on models and files small enough for seconds."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_rlhf.pocket.make import files
from lit_rlhf.pocket.tokenizer import build_tokenizer
from tests.command_line import run, write_config
from tests.models.tiny import tiny_config

CONFIGS = Path(__file__).parent.parent / "configs"
OTHERS = (
    "compare.yaml",
    "facts.yaml",
    "study.yaml",
)  # of other commands: tests/commands/test_compare.py, tests/evaluation/test_tax.py, tests/studies/test_plan.py
PATHS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.name not in OTHERS)
ROWS = 80
MODEL_KEYS = ("policy", "reference", "model_path", "path", "tokenizer")
FILE_KEYS = ("train", "val", "test", "predict")
MOST = {
    "max_response_length": 8,
    "rollout_batch_size": 64,
    "minibatch_size": 32,
    "batch_size": 32,
    "eval_batch_size": 16,
    "max_length": 160,
    "max_prompt_length": 96,
    "max_tokens": 4096,
    "num_layers": 1,
}
"""Sizes are cut to these; the pocket configs' own are at most as large, responses aside."""


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first rows of the pocket world's files, and a policy and a reward model of a few thousand weights."""
    from transformers import AutoModelForCausalLM

    from lit_rlhf.models.scalar import ScalarHead, ScalarModel

    folder = tmp_path_factory.mktemp("pocket")
    for name, rows in files(0):
        lines = [json.dumps(row) + "\n" for row in itertools.islice(rows, ROWS)]
        (folder / name).write_text("".join(lines), encoding="utf-8")
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = tiny_config("llama", len(tokenizer), hidden_size=16, intermediate_size=16, max_position_embeddings=256)
    for key in ("pad", "eos", "bos"):
        setattr(config, f"{key}_token_id", getattr(tokenizer, f"{key}_token_id"))
    policy = AutoModelForCausalLM.from_config(config)
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    ScalarModel(policy.model, ScalarHead(16)).save_pretrained(folder / "reward", tokenizer)
    return folder


def walk(node: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any, tuple[str, ...]]]:
    """Every (container, key, keys above) of a tree of dicts and lists."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in list(pairs):
        yield node, key, above
        yield from walk(value, (*above, str(key)))


def shrunk(config: dict[str, Any], pocket: Path, root: Path) -> dict[str, Any]:
    """The config with paths of the tiny world, sizes of seconds, and the CPU."""
    kind = config["data"]["class_path"]
    data = {"SFTDataModule": "sft.jsonl", "PreferenceDataModule": "preferences_train.jsonl"}
    for node, key, above in walk(config):
        value = node[key]
        if key in MODEL_KEYS and isinstance(value, str):
            node[key] = str(pocket / ("reward" if {"reward", "eval_rewards"} & {*above} else "policy"))
        elif key in FILE_KEYS and isinstance(value, str | list):
            name = "pretrain.jsonl" if "pretrain" in str(value) else data.get(kind, "prompts_train.jsonl")
            node[key] = str(pocket / name)
        elif key == "files" and above[-1:] == ("ptx",):
            node[key] = [str(pocket / "sft.jsonl")]
        elif key in MOST and isinstance(value, int):
            node[key] = min(value, MOST[key])
        elif key in ("pad_token", "attn_implementation"):
            node[key] = None
    arguments = config["model"]["init_args"]
    if arguments.get("engine", {}).get("class_path") == "VLLMEngine":
        del arguments["engine"]  # it has its own tests, with models of a size that it takes
    trainer = {k: v for k, v in config["trainer"].items() if k not in ("strategy", "num_nodes")}
    small = {"accelerator": "cpu", "devices": 1, "max_steps": 2, "max_epochs": -1, "limit_val_batches": 1}
    quiet = {"num_sanity_val_steps": 0, "enable_progress_bar": False, "default_root_dir": str(root)}
    config["trainer"] = {**trainer, **small, **quiet}
    return config


@pytest.mark.parametrize("path", PATHS, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_config_trains(path: Path, pocket: Path, tmp_path: Path) -> None:
    config = shrunk(yaml.safe_load(path.read_text(encoding="utf-8")), pocket, tmp_path / "run")
    run("fit", "--config", write_config(tmp_path / "config.yaml", config))
    (metrics,) = (tmp_path / "run").glob("csv/*/metrics.csv")
    with metrics.open(encoding="utf-8") as file:
        steps = {row["step"] for row in csv.DictReader(file)}
    assert {"0", "1"} <= steps or {"1", "2"} <= steps
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 2
    written = "adapter_config.json" if "_lora" in path.name else "config.json"
    assert (tmp_path / "run" / "export" / "final" / written).is_file()


@pytest.mark.parametrize("path", PATHS, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_config_parses_as_it_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its own paths, sizes and strategy: every key is known and every value has the right type."""
    with pytest.raises(SystemExit) as ended:
        run("fit", "--config", str(path), "--print_config")
    assert ended.value.code in (0, None)
    shown = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert shown["trainer"]["default_root_dir"] == given["trainer"]["default_root_dir"]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_config_says_how_it_is_run(path: Path) -> None:
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("lit-rlhf" in line and path.name in line for line in comments)


def test_there_are_configs() -> None:
    assert {path.parent.name for path in PATHS} >= {"pocket", "presets", "hh"}
