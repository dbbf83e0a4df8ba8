"""The memory plan: counted parts against real models and closed forms, and what the command says."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lit_rlhf.cli import main as cli
from lit_rlhf.commands.plan import main, parse_size, plan, sized, trainer_setup
from lit_rlhf.commands.training import RLHFCLI
from lit_rlhf.config import AdapterConfig, ModelConfig, OptimizerConfig, ScheduleConfig
from lit_rlhf.models.memory import Memory, SizedModel, TrainerSetup, predict
from lit_rlhf.models.uses import ModelUse, PassSizes
from lit_rlhf.modules.base import BaseModule
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.estimators import GAE, GroupNormalized
from lit_rlhf.rollout.engine import RolloutEngine
from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer

CONFIGS = Path(__file__).parents[2] / "configs"
WHOLE = ("sft", "reward", "ppo_max")
ARCHITECTURE = str(CONFIGS / "llama7b" / "architecture")
SMALL = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> str:
    LlamaConfig(**SMALL).save_pretrained(tmp_path / "small")
    return str(tmp_path / "small")


def model(*, attention: str = "eager", checkpointing: bool = False, **overrides: Any) -> SizedModel:
    loading = ModelConfig(attn_implementation=attention, gradient_checkpointing=checkpointing)
    options = {"role": "policy", "causal": True, "trained": True, **overrides}
    return SizedModel(path="", config=LlamaConfig(**SMALL), loading=loading, **options)


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
    sizes = PassSizes(update_rows=2, update_width=16, learned=8)
    n = model().parameters
    one = predict([model()], sizes, TrainerSetup(sharding="single", bf16=False)).resident
    assert one == {"policy weights": 4 * n, "optimizer state": 8 * n, "gradients": 4 * n}
    setup = TrainerSetup(sharding="zero", devices=4, bf16=True, bucket=100)
    four = predict([model()], sizes, setup).resident
    assert four["policy weights"] == 2 * n
    assert four["optimizer state"] == 12 * n // 4
    assert four["gradients"] == 2 * n // 4
    assert four["communication buckets"] == 3 * 100 * 2
    offloaded = predict([model()], sizes, TrainerSetup(sharding="zero", devices=4, offload_optimizer=True))
    assert offloaded.host["optimizer state"] == 12 * n // 4
    assert "optimizer state" not in offloaded.resident


def test_frozen_models_that_name_no_dtype_are_as_the_trained_ones() -> None:
    sizes = PassSizes(update_rows=2, update_width=16, learned=8)
    frozen = model(role="reference", trained=False, dtype=None)
    for setup, size in ((TrainerSetup(sharding="zero"), 2), (TrainerSetup(), 4), (TrainerSetup(bf16=False), 4)):
        weights = predict([model(), frozen], sizes, setup).resident
        assert weights["policy weights"] == weights["reference weights"] == size * frozen.parameters


def test_a_checkpoint_is_as_large_as_planned(world: Path, tmp_path: Path) -> None:
    module = make_ppo(world)
    make_trainer(tmp_path, limit_val_batches=0).fit(module, make_data(world))
    module.trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)
    moments = [state["optimizer_states"][0]["state"][i] for i in state["optimizer_states"][0]["state"]]
    tensors = [*state["state_dict"].values(), *(m[k] for m in moments for k in ("exp_avg", "exp_avg_sq"))]
    planned = predict(
        [sized(use) for use in module.memory_models()],
        PassSizes(update_rows=1, update_width=8, learned=4),
        TrainerSetup(bf16=False),
    ).checkpoint
    # The critic's head is not counted: one row of numbers.
    assert planned == pytest.approx(sum(t.numel() * t.element_size() for t in tensors), rel=0.01)


def test_frozen_models_cost_their_weights_where_they_wait() -> None:
    sizes = PassSizes(update_rows=2, update_width=16, learned=8, generated_rows=4, cache_slots=64, prefill_tokens=32)
    frozen = model(role="reference", trained=False, dtype="bfloat16", placement="cpu")
    memory = predict([model(), frozen], sizes, TrainerSetup())
    assert memory.host == {"reference weights": 2 * frozen.parameters}
    assert memory.phases["scoring"]["offloaded weights, while in use"] == 2 * frozen.parameters
    assert "reference activations" not in memory.phases["update"]


@pytest.mark.parametrize(
    "name", ["sft", "reward", "ppo_max", "ppo_max_vllm", "sft_lora", "reward_lora", "ppo_max_lora"]
)
def test_the_7b_configs_fit_their_a100(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(CONFIGS / "llama7b" / f"{name}.yaml")
    cli(["plan", "--config", config, "--memory", "80GB", "--model", ARCHITECTURE])
    assert "fits: " in capsys.readouterr().out


def test_the_readmes_7b_example_fits_eight_a100(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (CONFIGS.parent / "README.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL) if "my-org/sft-7b" in block]
    (tmp_path / "this.yaml").write_text(example, encoding="utf-8")
    configs = ["--config", str(CONFIGS / "presets" / "ppo_max.yaml"), "--config", str(tmp_path / "this.yaml")]
    cli(["plan", *configs, "--memory", "80GB", "--model", ARCHITECTURE])
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


def parts(small: str, config: str, *words: Any) -> Memory:
    return plan(["--config", str(CONFIGS / config), *map(str, words)], stand_in=small)[0]


PPO = "llama7b/ppo_max.yaml"


def test_options_change_the_plan_as_they_should(small: str) -> None:
    def peak(*words: Any) -> int:
        return parts(small, PPO, *words).peak

    base = peak()
    assert peak("--model.model.gradient_checkpointing", "false") > base
    assert peak("--trainer.strategy", "ddp") > base
    assert peak("--trainer.strategy", "lit_deepspeed_stage_2_offload") < base
    cache = parts(small, PPO, "--model.engine.max_batch_tokens", 2048).phases["rollout"]["KV cache"]
    # one row of 2048 slots in place of sixteen
    assert cache * 16 == parts(small, PPO).phases["rollout"]["KV cache"]
    assert peak("--data.micro_batch_tokens", 8192) == base, "the default on an accelerator"
    assert peak("--data.micro_batch_tokens", 4096) < base
    assert peak("--trainer.accelerator", "cpu") < base, "small passes are the default on a CPU"


def test_a_cache_that_is_not_sized_takes_eight_gib_of_an_accelerator(tmp_path: Path) -> None:
    text = (CONFIGS / PPO).read_text()
    unsized = tmp_path / "unsized.yaml"
    unsized.write_text(text.replace("max_batch_tokens: 32768, ", ""))
    assert unsized.read_text() != text

    def rollout(*words: Any) -> dict[str, int]:
        return parts(ARCHITECTURE, *words).phases["rollout"]

    row = 2048 * 2 * 32 * 4096 * 2  # keys and values of 7B in bf16: half a MiB a token
    eight_rows, sixteen = rollout(unsized), rollout(PPO)
    assert (eight_rows["KV cache"], sixteen["KV cache"]) == (8 * row, 16 * row) == (8 * 2**30, 16 * 2**30)
    assert eight_rows["logits"] * 2 == sixteen["logits"]
    four = rollout(unsized, "--data.rollout_batch_size", 32)
    assert four["KV cache"] == 4 * row, "four responses a rank are all there are"


def test_logits_are_bounded_in_bytes(small: str) -> None:
    from lit_rlhf.functional.logprobs import ACCELERATOR_BLOCK

    sizes = PassSizes(update_rows=64, update_width=1024, learned=1024)
    words = model().config.vocab_size
    chunks = {}
    for gib in (None, 0.001):
        sized = replace(model(), loading=ModelConfig(logits_gib=gib))
        chunks[gib] = predict([sized], sizes, TrainerSetup(bf16=False)).phases["update"]["logits"]
    fitting = int(0.001 * 2**30) // (8 * words) // 64 * 64
    assert chunks[0.001] == (2 * 4 + 4 * 4) * fitting * words
    assert chunks[None] == 2 * 4 * 4096 * words + 4 * 4 * min(4096 * words, ACCELERATOR_BLOCK)


class Longer(PPOModule):
    """A subclass with an option of its own."""

    def __init__(self, *args: Any, bonus: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bonus = bonus


class WithAnnotator(Longer):
    """A subclass that holds one model more."""

    def memory_models(self) -> list[ModelUse]:
        return [*super().memory_models(), ModelUse(role="annotator", path="nowhere", causal=True)]


class Sharper(GAE):
    """A subclass of an estimator that needs a critic."""


class NoCritic(GAE):
    """A subclass of one that turned it off."""

    needs_critic = False


def own(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def test_a_subclass_is_planned_as_what_it_is(small: str) -> None:
    base = parts(small, PPO)
    assert parts(small, PPO, "--model", own(Longer), "--model.bonus", 0.5) == base
    more = parts(small, PPO, "--model", own(WithAnnotator))
    assert more.resident["annotator weights"] == 2 * model().parameters
    assert {k: v for k, v in more.resident.items() if k != "annotator weights"} == base.resident


@pytest.mark.parametrize(("estimator", "critic"), [(Sharper, True), (NoCritic, False), (GroupNormalized, False)])
def test_the_estimator_says_whether_there_is_a_critic(small: str, estimator: type, critic: bool) -> None:
    base = parts(small, PPO)
    planned = parts(small, PPO, "--model.estimator", own(estimator), *([] if critic else ["--model.critic_loss=null"]))
    assert ("critic weights" in planned.resident) == ("critic activations" in planned.phases["update"]) == critic
    assert (planned == base) == critic
    assert planned.peak <= base.peak


def test_without_a_reference_none_is_counted(small: str) -> None:
    base = parts(small, PPO)
    bare = parts(small, PPO, "--model.reference", "null", "--model.kl_controller.coef", 0)
    assert set(base.host) - set(bare.host) == {"reference weights"}


def test_rewards_say_which_models_they_load(small: str) -> None:
    score = {"class_path": "ModelReward", "init_args": {"path": "a", "dtype": "float32"}}
    rule = {"class_path": "PythonReward", "init_args": {"function": "lit_rlhf.pocket.gold:gold_reward"}}
    bare = parts(small, PPO, "--model.reward", json.dumps(rule), "--model.critic.init", "policy")
    assert not any("reward" in name for name in [*bare.resident, *bare.host])
    mixed = {"class_path": "MixtureReward", "init_args": {"rewards": [score, rule, score]}}
    wrapped = {"class_path": "LengthReward", "init_args": {"reward": mixed, "coef": 0.1, "longest": 64}}
    both = parts(small, PPO, "--model.reward", json.dumps(wrapped), "--model.critic.init", "policy")
    one = model(causal=False).parameters
    assert both.resident["reward model weights"] == 2 * 4 * one
    other = {"gold": {"class_path": "ModelReward", "init_args": {"path": "b", "name": "gold_model"}}}
    judged = parts(small, PPO, "--model.eval_rewards", json.dumps(other))
    assert judged.resident["gold model weights"] == 2 * one  # as the policy under ZeRO


@pytest.mark.parametrize(("config", "role"), [("llama7b/sft.yaml", "policy"), ("llama7b/reward.yaml", "reward model")])
def test_supervised_modules(small: str, config: str, role: str) -> None:
    planned = parts(small, config)
    assert set(planned.phases) == {"update"}
    assert [name for name in planned.resident if "weights" in name] == [f"{role} weights"]
    assert parts(small, config, "--model.micro_batch_tokens", 2048).phases["update"] != planned.phases["update"]


def test_a_reward_model_without_lm_loss_has_no_logits(small: str) -> None:
    assert parts(small, "llama7b/reward.yaml", "--model.lm_coef", 1.0).phases["update"]["logits"] > 0
    assert parts(small, "llama7b/reward.yaml", "--model.lm_coef", 0.0).phases["update"]["logits"] == 0


def test_an_engine_that_says_nothing_generates_all_rows_at_once(small: str) -> None:
    planned = parts(small, PPO, "--model.engine", own(SilentEngine), "--trainer.devices", 1)
    assert planned.phases["rollout"]["KV cache"] == 128 * (1536 + 512) * model().cache_bytes_per_token(2)


def test_an_engine_with_a_copy_of_the_weights_is_counted(small: str) -> None:
    words = ["--model.engine", "VLLMEngine", "--model.engine.kv_gib", 3.0, "--model.engine.dtype", "bfloat16"]
    asleep, base = parts(small, PPO, *words), parts(small, PPO)
    resting = parts(small, PPO, *words, "--model.engine.sleep", "false")
    weights = 2 * model().parameters
    own_parts = {"engine weights": weights, "engine KV cache": 3 * 2**30}
    assert own_parts.items() <= asleep.phases["rollout"].items()
    assert "KV cache" not in asleep.phases["rollout"]
    assert asleep.resident == base.resident
    assert resting.resident == {**base.resident, **own_parts}
    doubled = parts(small, PPO, *words[:4], "--model.engine.dtype", "float32").phases["rollout"]
    assert doubled["engine weights"] == 2 * weights
    assert parts(small, PPO, *words[:4]).phases["rollout"]["engine weights"] == weights  # ZeRO's own are bf16


class SilentEngine(RolloutEngine):
    """An engine without a cache budget."""

    def sync(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError


class Mute(BaseModule):
    """A module that does not say how large it is."""

    def __init__(self) -> None:
        super().__init__(model=ModelConfig(), optimizer=OptimizerConfig(), schedule=ScheduleConfig())

    parameter_groups = sources = export = load_models = None  # type: ignore[assignment]


class Foreign(L.LightningModule):
    """A module of somebody else's."""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", own(Mute)], "Mute does not say .* define `pass_sizes`"),
        (["--model", own(Foreign)], "Foreign does not say how large it is: derive it from BaseModule"),
        (["--model", "SFTModule", "--model.policy", "a"], "SFTModule cannot run on RolloutDataModule, .* `max_length`"),
    ],
)
def test_a_module_that_cannot_be_planned_is_refused_in_one_line(words: list[str], told: str) -> None:
    data = ["--data", "RolloutDataModule", "--data.train", "prompts.jsonl"]
    with pytest.raises(ValueError, match=told):
        plan([*words, *data])


class Slip(PPOModule):
    """A subclass with a fault of its own."""

    def pass_sizes(self, *args: Any, **kwargs: Any) -> PassSizes:
        return self.nothing_of_the_kind  # type: ignore[no-any-return]


def test_a_slip_in_the_module_is_not_blamed_on_the_data(small: str) -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        parts(small, PPO, "--model", own(Slip))


def test_nothing_is_loaded_and_no_trainer_is_made(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("lit_rlhf.models.loading.pretrained.check_weights_are_plain", never)
    monkeypatch.setattr(PPOModule, "configure_model", never)
    monkeypatch.setattr(RLHFCLI, "_instantiate_trainer", never)
    strategy = {"class_path": "ZeroStrategy", "init_args": {"offload_optimizer": True}}
    by_class = parts(small, PPO, "--trainer.strategy", json.dumps(strategy))
    assert by_class == parts(small, PPO, "--trainer.strategy", "lit_deepspeed_stage_2_offload")


@pytest.mark.parametrize(
    ("devices", "count"), [("auto", 1), (-1, 1), ("-1", 1), (4, 4), ("4", 4), ([0, 2], 2), (None, 1)]
)
def test_devices(devices: Any, count: int) -> None:
    assert trainer_setup({"devices": devices}).devices == count
    assert trainer_setup({"devices": devices, "num_nodes": 3}, 2).devices == 6


@pytest.mark.parametrize(("text", "size"), [("80GB", 80 * 10**9), ("40 GiB", 40 * 2**30), ("0.5mb", 500_000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli(["plan", *words])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    with pytest.raises(ValueError, match=r"`memory` \(lots\)"):
        parse_size("lots")
    for text in ("80", "80G"):  # 80 bytes?
        with pytest.raises(ValueError, match=rf"`memory` \({text}\) must be a number with a unit"):
            parse_size(text)
    assert "none.yaml" in refused("--config", str(tmp_path / "none.yaml"))
    config = ("--config", str(CONFIGS / "pocket" / "sft.yaml"))
    assert "Did you mean: policy" in refused(*config, "--model.polici", "a")
    assert "Did you mean: --memory" in refused(*config, "--memry", "8GB")
    assert "unrecognized arguments: 8GB" in refused(*config, "8GB")
    assert "--model FOLDER" in refused(*config, "--model.policy", "./nowhere")


LORA = "llama7b/ppo_max_lora.yaml"


def lora_parameters(rank: int = 16) -> int:
    """A and B of every linear layer of the small Llama, by hand."""
    shapes = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 160), (64, 160), (160, 64)]
    return 3 * sum(rank * (rows + columns) for rows, columns in shapes)


def test_four_models_on_one_base_cost_one_base_and_adapters(small: str) -> None:
    memory = parts(small, LORA)
    n, lora = model().parameters, lora_parameters()
    assert memory.resident == {
        "shared base weights": 2 * n,
        **{f"{role} adapter": 4 * lora for role in ("policy", "reference", "critic", "reward model")},
        "optimizer state": 2 * 8 * lora,
        "gradients": 2 * 4 * lora,
    }
    assert memory.checkpoint == 2 * (4 + 8) * lora
    assert not memory.host


def test_models_of_their_own_beside_adapters(small: str) -> None:
    n = model().parameters
    offloaded = parts(small, LORA, "--model.reference.placement", "cpu")
    assert offloaded.host == {"reference weights": 4 * n}
    assert "reference adapter" not in offloaded.resident
    other = parts(small, LORA, "--model.reward.dtype", "float32")
    assert other.resident["reward model weights"] == 4 * model(causal=False).parameters
    whole = parts(small, LORA, "--model.critic.adapter", "false")
    assert whole.resident["critic weights"] == 4 * model(causal=False).parameters
    assert whole.resident["optimizer state"] == 8 * (model(causal=False).parameters + lora_parameters())


def test_how_the_base_is_kept(small: str) -> None:
    n, linear = model().parameters, 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    sizes = {}
    for base in ("float32", "bfloat16", "nf4"):
        sizes[base] = parts(small, LORA, "--model.model.adapter.base", base)
    assert sizes["float32"].resident["shared base weights"] == 4 * n
    four_bits = 0.5 + 1 / 64 + 4 / 64 / 256
    assert sizes["nf4"].resident["shared base weights"] == pytest.approx(four_bits * linear + 2 * (n - linear), abs=2)
    # Backward keeps the bf16 copies of a frozen fp32 layer that autocast makes.
    copies = [sizes[base].phases["update"]["bf16 copies of weights"] for base in ("float32", "bfloat16")]
    assert copies[0] - copies[1] == 2 * 2 * (linear // 3)


def test_adapter_folders_that_exist_are_read(small: str, tmp_path: Path) -> None:
    from lit_rlhf.models.adapters import new_adapter, save_adapter

    real = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    adapter = AdapterConfig(r=4, target_modules="all-linear")
    save_adapter(new_adapter(real, adapter, base=small), tmp_path)
    resident = parts(small, LORA, "--model.policy", tmp_path, "--model.model.adapter.r", 4).resident
    assert resident["policy adapter"] == resident["reference adapter"] == 4 * lora_parameters(4)
    bare = parts(small, LORA, "--model.policy", small).resident
    assert "reference adapter" not in bare


def test_frozen_and_cut_layers(small: str) -> None:
    base = parts(small, "llama7b/sft.yaml", "--trainer.strategy", "auto", "--trainer.devices", 1)
    words = ("--trainer.strategy", "auto", "--trainer.devices", 1, "--model.model.freeze_layers", 1)
    frozen = parts(small, "llama7b/sft.yaml", *words)
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160 + 2 * 64
    assert base.resident["gradients"] - frozen.resident["gradients"] == 4 * (layer + 300 * 64)
    assert base.resident["policy weights"] == frozen.resident["policy weights"]
    assert frozen.phases["update"]["policy activations"] < base.phases["update"]["policy activations"]
    cut = parts(small, PPO, "--model.critic.init", "policy", "--model.critic.num_layers", 1)
    whole = parts(small, PPO, "--model.critic.init", "policy")
    assert whole.resident["critic weights"] - cut.resident["critic weights"] == 2 * 2 * layer
