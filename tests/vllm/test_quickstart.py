"""PPO-max as the quickstart has it, on the pocket world: with vLLM the same numbers and the same result table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from lit_rlhf.cli import main
from lit_rlhf.pocket.make import make

ENGINE = "    engine: {class_path: VLLMEngine, init_args: {max_length: 256, kv_gib: 0.1, sampler_logprobs: false}}\n"
SHORT = {
    "iterations: 20": "iterations: 1", "rollout_batch_size: 64": "rollout_batch_size: 16",
    "minibatch_size: 32": "minibatch_size: 8", "eval_batch_size: 128": "eval_batch_size: 16\n    eval_limit: 12",
    "check_val_every_n_epoch: 10": "check_val_every_n_epoch: 1", "max_epochs: 100": "max_epochs: 3",
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pocket world with the stages before PPO left out: the base is the policy, its trunk the reward model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lit_rlhf.models.scalar import ScalarHead, ScalarModel

    root = tmp_path_factory.mktemp("pocket")
    make(root / "data", seed=0)
    base = root / "data" / "base"
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    torch.manual_seed(0)
    for folder in ("sft", "reward"):
        (root / folder / "export").mkdir(parents=True)
    policy.save_pretrained(root / "sft" / "export" / "final")
    tokenizer.save_pretrained(root / "sft" / "export" / "final")
    head = ScalarHead(policy.config.hidden_size)
    ScalarModel(policy.base_model, head).save_pretrained(root / "reward" / "export" / "final", tokenizer)
    return root


def trained(world: Path, root: Path, engine: str) -> tuple[list[dict[str, str]], str]:
    """Every number of the fit but the clock's, and the result table."""
    config = _placed("ppo_max", world, root)
    for long, short in SHORT.items():
        assert long in config
        config = config.replace(long, short)
    root.mkdir()
    file = root / "config.yaml"
    file.write_text(config.replace("    sampling: {", engine + "    sampling: {"), encoding="utf-8")
    main(["fit", "--config", str(file), "--seed_everything", "0", "--trainer.enable_progress_bar", "false"])
    for name, policy in (("sft", world / "sft"), ("ppo", root)):
        words = ["--model.policy", str(policy / "export" / "final"), "--trainer.logger", "false"]
        where = ["--trainer.default_root_dir", str(root / "test" / name)]
        main(["test", "--config", str(file), "--seed_everything", "0", *words, *where])
    judged = root / "compare.yaml"
    judged.write_text(_placed("compare", world, root), encoding="utf-8")
    named = [f"{name}={root / 'test' / folder}" for name, folder in (("SFT", "sft"), ("PPO-max", "ppo"))]
    main(["compare", "--config", str(judged), *named, "--out", str(root / "results")])
    (log,) = root.rglob("metrics.csv")
    with log.open(encoding="utf-8") as found:
        rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(found)]
    return rows, (root / "results.md").read_text(encoding="utf-8")


def _placed(name: str, world: Path, root: Path) -> str:
    text = Path(f"configs/pocket/{name}.yaml").read_text(encoding="utf-8")
    return text.replace("runs/pocket/ppo_max", str(root)).replace("runs/pocket", str(world))


def test_with_vllm_the_run_and_its_table_are_the_same(world, tmp_path) -> None:
    ours, theirs = trained(world, tmp_path / "ours", ""), trained(world, tmp_path / "theirs", ENGINE)
    assert len(ours[0]) >= 6
    assert len({row["rollout/score"] for row in ours[0] if row["rollout/score"]}) == 3
    assert ours[0] == theirs[0]
    assert "PPO-max" in ours[1]
    assert ours[1] == theirs[1]
