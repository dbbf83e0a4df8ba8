"""The memory plan: counted parts against real models and closed forms, and what the command says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lit_rlhf.cli import main as cli
from lit_rlhf.commands.plan import main, merged, parse_size, plan, read_yaml
from lit_rlhf.models.memory import Model, Numbers, Shapes, predict

CONFIGS = Path(__file__).parents[2] / "configs"
ARCHITECTURE = str(CONFIGS / "llama7b" / "architecture")
SMALL = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> str:
    LlamaConfig(**SMALL).save_pretrained(tmp_path / "small")
    return str(tmp_path / "small")


def model(*, attention: str = "eager", **overrides: Any) -> Model:
    config = LlamaConfig(**SMALL)
    options = {"role": "policy", "causal": True, "trained": True, **overrides}
    return Model(config=config, attention=attention, **options)


def really_saved(*, attention: str, rows: int, width: int, checkpointing: bool) -> int:
    real = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL), attn_implementation=attention).train()
    if checkpointing:
        real.gradient_checkpointing_enable({"use_reentrant": False})
    own = {p.untyped_storage().data_ptr() for p in real.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = real.model(input_ids=torch.zeros(rows, width, dtype=torch.long), use_cache=False)
    assert output is not None
    return sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_fake_activations_are_the_real_ones(attention: str, checkpointing: bool) -> None:
    real = really_saved(attention=attention, rows=3, width=40, checkpointing=checkpointing)
    fake = model(attention=attention, checkpointing=checkpointing).saved_activations(3, 40, torch.float32)
    # The fused kernel's bookkeeping differs somewhat at this size; nothing else may.
    assert fake == pytest.approx(real, rel=0.1 if attention == "sdpa" else 0.001)


def test_parameters_and_cache_are_counted_exactly() -> None:
    real = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    assert model().parameters == sum(p.numel() for p in real.parameters())
    # keys and values, layers, heads, head size, bytes
    assert model().cache_bytes_per_token(2) == 2 * 3 * 2 * 16 * 2


def test_zero_shards_what_it_should() -> None:
    shapes = Shapes(update_rows=2, update_width=16, learned=8)
    n = model().parameters
    one = predict([model()], shapes, Numbers(sharding="single", bf16=False)).resident
    assert one == {"policy weights": 4 * n, "optimizer state": 8 * n, "gradients": 4 * n}
    numbers = Numbers(sharding="zero", devices=4, bf16=True, bucket=100)
    four = predict([model()], shapes, numbers).resident
    assert four["policy weights"] == 2 * n
    assert four["optimizer state"] == 12 * n // 4
    assert four["gradients"] == 2 * n // 4
    assert four["communication buckets"] == 3 * 100 * 2
    offloaded = predict([model()], shapes, Numbers(sharding="zero", devices=4, offload_optimizer=True))
    assert offloaded.host["optimizer state"] == 12 * n // 4
    assert "optimizer state" not in offloaded.resident


def test_frozen_models_cost_their_weights_where_they_wait() -> None:
    shapes = Shapes(update_rows=2, update_width=16, learned=8, generated_rows=4, cache_slots=64, prefill_tokens=32)
    frozen = model(role="reference", trained=False, weight_bytes=2, offloaded=True)
    memory = predict([model(), frozen], shapes, Numbers())
    assert memory.host == {"reference weights": 2 * frozen.parameters}
    assert memory.phases["scoring"]["offloaded weights, while in use"] == 2 * frozen.parameters
    assert "reference activations" not in memory.phases["update"]


@pytest.mark.parametrize("name", ["sft", "reward", "ppo_max"])
def test_the_7b_configs_fit_eight_a100(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(CONFIGS / "llama7b" / f"{name}.yaml")
    cli(["plan", "--config", config, "--memory", "80GB", "--model", ARCHITECTURE])
    assert "fits: " in capsys.readouterr().out


def test_what_does_not_fit_ends_with_exit_code_1(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(CONFIGS / "llama7b" / "ppo_max.yaml"), "--memory", "1GB", "--model", small])
    assert ended.value.code == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_json_holds_the_parts(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--config", str(CONFIGS / "pocket" / "ppo_max.yaml"), "--model", small, "--json", "--cpu"])
    found = json.loads(capsys.readouterr().out)
    phases = {name: sum(parts.values()) for name, parts in found["phases"].items()}
    assert found["peak"] == sum(found["resident"].values()) + max(phases.values()) == found["needed"]


def test_options_change_the_plan_as_they_should(small: str) -> None:
    config = read_yaml(str(CONFIGS / "llama7b" / "ppo_max.yaml"))

    def peak(*path: str, to: Any) -> int:
        changed = config
        for key in reversed(path):
            to = {key: to}
        changed = merged(changed, to)
        return plan(changed, stand_in=small)[0].peak

    base = plan(config, stand_in=small)[0].peak
    init = ("model", "init_args")
    assert peak(*init, "model", "gradient_checkpointing", to=False) > base
    assert peak("trainer", "strategy", to="ddp") > base
    assert peak("trainer", "strategy", to="lit_deepspeed_stage_2_offload") < base
    fewer = plan(
        merged(config, {"model": {"init_args": {"engine": {"init_args": {"max_batch_tokens": 2048}}}}}), stand_in=small
    )
    # one row of 2048 slots in place of sixteen
    assert fewer[0].phases["rollout"]["KV cache"] * 16 == plan(config, stand_in=small)[0].phases["rollout"]["KV cache"]
    assert peak(*init, "estimator", to={"class_path": "GroupNormalized", "init_args": {}}) < base
    data = ("data", "init_args", "micro_batch_tokens")
    assert peak(*data, to=8192) == base, "the default on an accelerator"
    assert peak(*data, to=4096) < base
    assert peak("trainer", "accelerator", to="cpu") < base, "small passes are the default on a CPU"


@pytest.mark.parametrize(("text", "size"), [("80GB", 80 * 10**9), ("40 GiB", 40 * 2**30), ("0.5mb", 500_000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`memory` \(lots\)"):
        parse_size("lots")
    with pytest.raises(FileNotFoundError, match="No config file"):
        read_yaml(str(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match=r"`model.class_path` \(None\) must be PPOModule"):
        plan({})
    missing = {"model": {"class_path": "SFTModule", "init_args": {"policy": "./nowhere"}}}
    with pytest.raises(FileNotFoundError, match="--model FOLDER"):
        plan(missing)
