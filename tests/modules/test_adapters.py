"""SFT, reward model and PPO with adapters: four models on one base, the invariants, resume and what is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from lit_rlhf.config import AdapterConfig, ModelConfig, OptimizerConfig
from lit_rlhf.models.causal import unwrap
from lit_rlhf.models.cpu import tune
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.models.scoring import model_columns
from lit_rlhf.models.shared_base import held_base
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.modules.reward_model import RewardModelModule
from lit_rlhf.modules.sft import SFTModule
from lit_rlhf.ppo.config import CriticConfig, PPOOptimizerConfig, ReferenceConfig
from lit_rlhf.rewards.model import ModelReward
from tests.modules.test_reward_model import make_data as make_pairs_data
from tests.modules.test_reward_model import write_pairs
from tests.modules.test_sft import make_data as make_text_data
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer, same, weights, write_world

peft = pytest.importorskip("peft")

FAST = PPOOptimizerConfig(lr=2e-2, critic_lr=2e-2)


def loading(**options: Any) -> ModelConfig:
    return ModelConfig(adapter=AdapterConfig(**{"r": 2, "alpha": 8.0, "target_modules": "all-linear", **options}))


def fit(module: Any, data: Any, root: Path, **options: Any) -> Recorder:
    recorder = Recorder()
    trainer = make_trainer(root, callbacks=[recorder], limit_val_batches=0, **options)
    trainer.fit(module, data)
    return recorder


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world in which SFT and the reward model have been trained as adapters on one base: `policy`."""
    world = write_world(tmp_path_factory.mktemp(request.param), architecture=request.param)
    torch.manual_seed(0)
    sft = SFTModule(str(world / "policy"), OptimizerConfig(lr=2e-2), model=loading())
    fit(sft, make_text_data(world / "texts.jsonl"), world / "run", max_epochs=1)
    sft.export(world / "sft")
    reward = RewardModelModule(str(world / "sft"), optimizer=OptimizerConfig(lr=2e-2), model=loading(), lm_coef=0.5)
    fit(reward, make_pairs_data(write_pairs(world / "pairs.jsonl")), world / "run", max_epochs=1)
    reward.export(world / "rm")
    return world


def make(chain: Path, kind: type[PPOModule] = PPOModule, **options: Any) -> PPOModule:
    torch.manual_seed(0)
    reward = ModelReward(str(chain / "rm"))
    defaults = {"policy": str(chain / "sft"), "reward": reward, "model": loading(), "optimizer": FAST}
    return make_ppo(chain, kind, **{**defaults, **options})


def own_base(module: PPOModule) -> dict[str, Any]:
    models = {
        "policy": unwrap(module.policy),
        "critic": unwrap(module.critic.trunk),
        "reference": unwrap(module.reference.model),
        "reward": unwrap(module.reward._model.model.trunk),
    }
    return {name: held_base(model) for name, model in models.items()}


class TestOneBackbone:
    def test_all_four_share_it(self, chain) -> None:
        module = make(chain)
        module.configure_model()
        assert len(set(own_base(module).values())) == 1
        assert None not in own_base(module).values()
        trained = [name for name, p in module.named_parameters() if p.requires_grad]
        assert all("lora_" in name or name == "critic.head.weight" for name in trained)
        groups = module.parameter_groups()
        assert sum(len(parameters) for parameters, _ in groups.values()) == len(trained)

    @pytest.mark.parametrize(
        ("options", "alone"),
        [
            ({"reference": ReferenceConfig(placement="cpu")}, {"reference"}),
            ({"reference": ReferenceConfig(dtype="bfloat16")}, {"reference"}),
            ({"reference": ReferenceConfig(path="policy")}, set()),
            ({"critic": CriticConfig(adapter=False)}, {"critic"}),
            ({"critic": CriticConfig(init="policy", num_layers=1)}, set()),
            ({"policy": "policy", "critic": CriticConfig(init="policy")}, set()),
            ({"reward": {"placement": "cpu"}}, {"reward"}),
            ({"reward": {"dtype": "bfloat16"}}, {"reward"}),
            ({"model": loading(base="bfloat16")}, set()),
        ],
    )
    def test_each_may_be_a_model_of_its_own(self, chain, options, alone) -> None:
        options = dict(options)
        for name in ("policy",):
            if isinstance(options.get(name), str):
                options[name] = str(chain / options[name])
        if "reference" in options and options["reference"].path:
            options["reference"] = ReferenceConfig(path=str(chain / options["reference"].path))
        if "reward" in options:
            options["reward"] = ModelReward(str(chain / "rm"), **options["reward"])
        module = make(chain, **options)
        module.configure_model()
        assert {name for name, base in own_base(module).items() if base is None} == alone
        assert len(set(own_base(module).values()) - {None}) == 1

    def test_a_whole_reward_model_lends_its_weights_to_the_critic(self, chain) -> None:
        module = make(chain, reward=ModelReward(str(chain / "reward")))
        module.configure_model()
        bases = own_base(module)
        assert bases["policy"] is bases["reference"]
        assert bases["critic"] is bases["reward"]
        assert bases["policy"] is not bases["critic"]

    def test_dropout_is_refused(self, chain) -> None:
        with pytest.raises(ValueError, match=r"`adapter\.dropout` \(0\.1\) must be 0 in PPO"):
            make(chain, model=loading(dropout=0.1))


class Held(PPOModule):
    """Also asks references of their own, and keeps how far what they say is from the reference's."""

    def copy(self) -> Any:
        """What plain transformers or peft read from the reference's folder."""
        folder = self.models.reference_path
        if not (Path(folder) / "adapter_config.json").exists():
            return AutoModelForCausalLM.from_pretrained(folder).eval()
        return peft.AutoPeftModelForCausalLM.from_pretrained(folder).get_base_model().eval()

    def merged(self) -> Any:
        """The same with an adapter added to the base's weights."""
        return load_causal_lm(self.models.reference_path)

    def score_rollout(self, rollout: Any, micro_batches: list[Tensor]) -> Any:
        scored, entropy = super().score_rollout(rollout, micro_batches)
        for own, differences in ((self.copy(), self.differences), (self.merged(), self.merged_differences)):
            tune(own, "cpu")
            columns = model_columns(rollout, micro_batches, policy=None, reference=own, critic=None, pad_token_id=0)
            differences.append(float((columns.ref_logprobs - scored.ref_logprobs).abs().max()))
        self.kl.append(float((scored.old_logprobs - scored.ref_logprobs).abs().max()))
        return scored, entropy


class TestInvariants:
    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    @pytest.mark.parametrize("start", ["policy", "sft"])
    def test_reference_equals_a_copy_ratios_start_at_one_frozen_bits_stay(self, chain, tmp_path, precision, start):
        module = make(chain, Held, policy=str(chain / start), critic=CriticConfig(init="reward"))
        module.differences, module.merged_differences, module.kl = [], [], []
        module.configure_model()
        frozen = {"reference": module.reference.model, "reward": module.reward._model.model, "policy": module.policy}
        before = {
            name: {k: p.clone() for k, p in model.named_parameters() if not p.requires_grad}
            for name, model in frozen.items()
        }
        assert all(before.values())
        start_weights = weights(module)
        recorder = fit(module, make_data(chain), tmp_path, max_epochs=3, precision=precision)
        assert [row["update/ratio_drift"] for row in recorder.metrics[::2]] == [0.0] * 3
        assert max(module.differences) == 0.0
        # An adapter merged into the weights rounds differently; bf16 rounds a logit of 8 to a multiple of 2**-5.
        bound = 0.0 if start == "policy" else 2e-5 if precision == "32-true" else 0.1
        assert max(module.merged_differences) <= bound
        assert module.kl[0] == 0.0
        assert module.kl[-1] > 0.01
        assert not same(start_weights, weights(module))
        for name, model in frozen.items():
            now = dict(model.named_parameters())
            assert all(torch.equal(now[key], value) for key, value in before[name].items()), name
            assert name == "policy" or not any(part.training for part in model.modules())

    def test_rewards_are_those_of_the_exported_folder(self, chain, tmp_path) -> None:
        module = make(chain)
        experience = fit(module, make_data(chain), tmp_path, max_epochs=1).experiences[0]
        own = load_scalar_model(chain / "rm", head="load").eval()
        rows = [ids[keep].tolist() for ids, keep in zip(experience.input_ids, experience.attention_mask, strict=True)]
        with torch.no_grad():
            wanted = torch.stack([own(torch.tensor([row]))[0, -1] for row in rows])
        torch.testing.assert_close(experience.scores, wanted, rtol=1e-4, atol=1e-5)

    def test_a_base_in_bf16(self, chain, tmp_path) -> None:
        module = make(chain, model=loading(base="bfloat16"))
        recorder = fit(module, make_data(chain), tmp_path, max_epochs=2, precision="bf16-mixed")
        assert [row["update/ratio_drift"] for row in recorder.metrics[::2]] == [0.0] * 2
        dtypes = {p.dtype for p in module.parameters() if p.requires_grad}
        assert dtypes == {torch.float32}
        assert {p.dtype for p in module.policy.parameters() if not p.requires_grad} == {torch.bfloat16}


class TestCheckpoints:
    def test_adapters_heads_and_optimizer_alone(self, chain, tmp_path) -> None:
        module = make(chain)
        trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
        trainer.fit(module, make_data(chain))
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        state = torch.load(tmp_path / "run.ckpt", weights_only=True)["state_dict"]
        assert all("lora_" in key or key == "critic.head.weight" for key in state)
        assert len(state) == len([p for p in module.parameters() if p.requires_grad])

    def test_resume_is_bit_for_bit(self, chain, tmp_path) -> None:
        def run(epochs: int, **options: Any) -> tuple[PPOModule, Any]:
            module = make(chain)
            trainer = make_trainer(tmp_path, max_epochs=epochs, limit_val_batches=0)
            trainer.fit(module, make_data(chain), **options)
            return module, trainer

        straight, _ = run(4)
        _, half = run(2)
        half.save_checkpoint(tmp_path / "half.ckpt")
        torch.manual_seed(99)  # the fresh weights that the checkpoint replaces are others
        resumed, _ = run(4, ckpt_path=str(tmp_path / "half.ckpt"))
        assert same(weights(straight), weights(resumed))

    def test_a_missing_adapter_weight_is_an_error(self, chain) -> None:
        module = make(chain)
        module.configure_model()
        state = module.state_dict()
        name = next(key for key in state if "lora_" in key)
        with pytest.raises(RuntimeError, match="does not fit this PPOModule: it lacks"):
            module.load_state_dict({k: v for k, v in state.items() if k != name})
        module.load_state_dict(state)

    def test_frozen_layers_are_left_out_too(self, chain, tmp_path) -> None:
        module = make_ppo(chain, model=ModelConfig(freeze_layers=1), optimizer=FAST)
        start = {k: p.clone() for k, p in load_causal_lm(chain / "policy").named_parameters()}
        fit(module, make_data(chain), tmp_path, max_epochs=1)
        moved = {name for name, p in module.policy.named_parameters() if not torch.equal(p, start[name])}
        trained = {name for name, p in module.policy.named_parameters() if p.requires_grad}
        assert moved == trained
        kept = {key.removeprefix("policy.") for key in module.state_dict() if key.startswith("policy.")}
        assert 0 < len(trained) < len(start)
        assert trained <= kept
        assert not kept & (start.keys() - trained - {"lm_head.weight"})


class TestSupervised:
    def test_the_adapter_folder_is_what_was_trained(self, chain) -> None:
        base, sft = load_causal_lm(chain / "policy"), load_causal_lm(chain / "sft")
        ids = torch.arange(4, 12)[None]
        with torch.no_grad():
            assert not torch.allclose(base(ids).logits, sft(ids).logits, atol=1e-3)
        assert not (chain / "sft" / "config.json").exists()

    def test_the_next_stages_adapter_starts_from_the_last_ones(self, chain) -> None:
        from lit_rlhf.models.adapters import adapter_weights

        sft, module = adapter_weights(chain / "sft"), make(chain)
        module.configure_model()
        found = {k.replace(".default.", "."): v for k, v in module.policy.state_dict().items() if "lora_" in k}
        assert found.keys() == sft.keys()
        assert all(torch.equal(found[key], sft[key]) for key in sft)

    def test_reward_model_on_a_cut_trunk(self, chain, tmp_path) -> None:
        torch.manual_seed(0)
        options = {"optimizer": OptimizerConfig(lr=2e-2), "lm_coef": 0.0, "num_layers": 1}
        for name, model in (("whole", ModelConfig()), ("adapter", loading())):
            module = RewardModelModule(str(chain / "policy"), model=model, **options)
            fit(module, make_pairs_data(write_pairs(tmp_path / "pairs.jsonl")), tmp_path, max_epochs=1)
            module.export(tmp_path / name)
            again = load_scalar_model(tmp_path / name, head="load").eval()
            assert again.config.get_text_config().num_hidden_layers == 1
            ids = torch.arange(4, 12)[None]
            with torch.no_grad():
                torch.testing.assert_close(again(ids), module.reward_model.eval()(ids), rtol=1e-4, atol=1e-5)

    def test_options_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match=r"`num_layers` \(3\) needs `head: fresh`"):
            RewardModelModule("a", head="load", lm_coef=0.0, num_layers=3)
        with pytest.raises(ValueError, match=r"`critic\.num_layers` \(3\) needs `critic\.init: policy`"):
            CriticConfig(num_layers=3)
