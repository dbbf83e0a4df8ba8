"""Adapters: shared bases, folders that plain peft reads with equal numbers, and what is refused."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lit_rlhf.config import AdapterConfig, ModelConfig
from lit_rlhf.models.adapters import (
    ADAPTER_FILE,
    LAYERS_FILE,
    WEIGHT_FILES,
    adapter_weights,
    base_of,
    is_adapted,
    stored_config,
)
from lit_rlhf.models.causal import projector, trunk_hidden
from lit_rlhf.models.export import export_policy, export_policy_adapter, export_scalar_adapter
from lit_rlhf.models.loading.adapted import (
    load_adapted_policy,
    load_adapted_scalar,
    load_frozen_lm,
    load_frozen_scalar,
    shared_origin,
)
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.configured import load_policy, load_scalar
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.models.loading.tokenizer import load_tokenizer
from lit_rlhf.models.shared_base import held_base

peft = pytest.importorskip("peft")

IDS = torch.arange(4, 20).view(2, 8)
KINDS = {
    "lora": {},
    "everywhere": {"target_modules": "all-linear"},
    "rslora": {"rslora": True},
    "dora": {"dora": True, "target_modules": "all-linear"},
}


def loading(**options) -> ModelConfig:
    return ModelConfig(adapter=AdapterConfig(**{"r": 3, "alpha": 6.0, **options}))


def moved(model: nn.Module, seed: int = 1) -> nn.Module:
    """Every trained weight changed, as by training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def tensors(model: nn.Module) -> set[int]:
    return {p.data_ptr() for name, p in model.named_parameters() if "lora" not in name and "head" not in name}


class TestTrained:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_a_fresh_adapter_changes_nothing_and_trains_alone(self, causal_folder, architecture):
        folder = causal_folder(architecture)
        policy = load_adapted_policy(folder, loading())
        torch.testing.assert_close(logits(policy), logits(load_causal_lm(folder)), rtol=0, atol=0)
        names = {name for name, p in policy.named_parameters() if p.requires_grad}
        assert names
        assert all("lora_" in name for name in names)

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_gradients_reach_every_adapter_and_no_base_weight(self, causal_folder, checkpointing):
        config = ModelConfig(
            adapter=AdapterConfig(r=2, target_modules="all-linear"), gradient_checkpointing=checkpointing
        )
        policy = moved(load_adapted_policy(causal_folder(), config)).train()
        projector(policy)(trunk_hidden(policy, IDS)).square().mean().backward()
        for name, parameter in policy.named_parameters():
            assert (parameter.grad is not None) == ("lora_" in name), name

    def test_checkpointing_gives_the_same_bits(self, causal_folder):
        folder, found = causal_folder(), []
        for checkpointing in (False, True):
            torch.manual_seed(0)
            config = ModelConfig(adapter=AdapterConfig(r=2), gradient_checkpointing=checkpointing)
            policy = moved(load_adapted_policy(folder, config)).train()
            projector(policy)(trunk_hidden(policy, IDS)).square().mean().backward()
            found.append([p.grad for p in policy.parameters() if p.grad is not None])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    def test_a_scalar_model_trains_adapter_and_head(self, causal_folder):
        critic = load_adapted_scalar(causal_folder(), loading(), head="fresh")
        names = {name for name, p in critic.named_parameters() if p.requires_grad}
        assert "head.weight" in names
        assert all("lora_" in name for name in names - {"head.weight"})

    @pytest.mark.parametrize("lm_head", [False, True])
    def test_scores_are_those_of_a_model_of_its_own(self, causal_folder, lm_head):
        folder = causal_folder()
        torch.manual_seed(3)
        shared = load_adapted_scalar(folder, loading(), head="fresh", lm_head=lm_head).eval()
        own = load_scalar_model(folder, head="fresh", lm_head=lm_head).eval()
        own.head.weight.data.copy_(shared.head.weight)
        assert torch.equal(shared(IDS), own(IDS))
        if lm_head:
            hidden = torch.randn(3, 32)
            assert torch.equal(shared.lm_project(hidden), own.lm_project(hidden))


class TestSharing:
    def test_models_on_one_folder_hold_the_same_tensors(self, causal_folder):
        folder = causal_folder()
        policy = load_adapted_policy(folder, loading())
        critic = load_adapted_scalar(folder, loading(), head="fresh")
        found, kind = shared_origin(folder, dtype=None, placement="device")
        reference = load_frozen_lm(found, kind, ModelConfig())
        assert tensors(policy) == tensors(reference)
        assert tensors(critic) == tensors(policy), "but for the LM head, which `tensors` leaves out"
        assert not is_adapted(reference)

    def test_each_has_modules_of_its_own(self, causal_folder):
        folder = causal_folder()
        policy = load_adapted_policy(folder, loading())
        found, kind = shared_origin(folder, dtype=None, placement="device")
        reference = load_frozen_lm(found, kind, ModelConfig())
        before = logits(reference)
        moved(policy).train()
        assert not reference.training
        assert torch.equal(logits(reference), before)
        assert not torch.allclose(logits(policy), before, atol=1e-3)

    def test_the_base_goes_with_the_last_model_on_it(self, causal_folder):
        folder = causal_folder()
        critic = load_adapted_scalar(folder, loading(), head="fresh")
        policy = load_adapted_policy(folder, loading())
        base = held_base(policy.get_base_model())
        assert base is held_base(critic.trunk.get_base_model())
        del policy, base
        gc.collect()
        assert shared_origin(folder, dtype=None, placement="device") is not None
        del critic
        gc.collect()
        assert shared_origin(folder, dtype=None, placement="device") is None

    def test_another_dtype_or_place_or_folder_is_not_shared(self, causal_folder):
        folder = causal_folder()
        policy = load_adapted_policy(folder, loading(base="bfloat16"))
        assert {p.dtype for name, p in policy.named_parameters() if "lora" not in name} == {torch.bfloat16}
        assert shared_origin(folder, dtype="bfloat16", placement="device") is not None
        assert shared_origin(folder, dtype="float32", placement="device") is None
        assert shared_origin(folder, dtype=None, placement="cpu") is None
        assert shared_origin(causal_folder(name="other"), dtype=None, placement="device") is None

    def test_a_base_that_a_strategy_has_cast_is_not_lent_again(self, causal_folder):
        folder = causal_folder()
        policy = load_adapted_policy(folder, loading())
        for parameter in policy.parameters():
            parameter.data = parameter.data.bfloat16()
        assert shared_origin(folder, dtype=None, placement="device") is None
        again = load_adapted_policy(folder, loading())
        assert {p.dtype for p in again.parameters()} == {torch.float32}

    def test_tied_embeddings_stay_tied(self, causal_folder):
        policy = load_adapted_policy(causal_folder(tie_word_embeddings=True), loading())
        inner = policy.get_base_model()
        assert inner.lm_head.weight is inner.model.embed_tokens.weight


class TestFolders:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_policy_in_plain_peft(self, causal_folder, tokenizer, tmp_path, architecture, kind):
        from transformers import AutoModelForCausalLM

        folder = causal_folder(architecture)
        policy = moved(load_adapted_policy(folder, loading(**KINDS[kind])))
        out = export_policy_adapter(policy, tokenizer, tmp_path / "out")
        wanted = logits(policy)
        assert not torch.allclose(wanted, logits(load_causal_lm(folder)), atol=1e-3)
        plain = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), out)
        assert torch.equal(logits(plain), wanted)
        assert torch.equal(logits(peft.AutoPeftModelForCausalLM.from_pretrained(out)), wanted)
        again = load_adapted_policy(out, loading(**KINDS[kind]))
        assert torch.equal(logits(again), wanted)
        torch.testing.assert_close(logits(load_causal_lm(out)), wanted, rtol=1e-4, atol=1e-4)
        assert load_tokenizer(out).get_vocab() == tokenizer.get_vocab()

    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_merged_in_plain_transformers(self, causal_folder, tokenizer, tmp_path, architecture):
        from transformers import AutoModelForCausalLM

        policy = moved(load_adapted_policy(causal_folder(architecture), loading()))
        out = export_policy(policy, tokenizer, tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(out)
        torch.testing.assert_close(logits(merged), logits(policy), rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    @pytest.mark.parametrize("layers", [None, 1])
    def test_reward_model_in_plain_peft(self, causal_folder, tokenizer, tmp_path, architecture, kind, layers):
        from transformers import AutoModelForSequenceClassification

        folder = causal_folder(architecture)
        model = moved(load_adapted_scalar(folder, loading(**KINDS[kind]), head="fresh", num_layers=layers)).eval()
        out = export_scalar_adapter(model, tokenizer, tmp_path / "out")
        options = {} if layers is None else {"num_hidden_layers": layers}
        assert (out / LAYERS_FILE).is_file() == (layers is not None)
        base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=0, **options)
        plain = peft.PeftModel.from_pretrained(base, out).eval()
        with torch.no_grad():
            wanted = model(IDS)[:, -1:]
            assert torch.equal(plain(input_ids=IDS).logits, wanted)
            # As a model of its own, and on a base that somebody holds.
            merged = load_scalar_model(out, head="load").eval()
            torch.testing.assert_close(merged(IDS)[:, -1:], wanted, rtol=1e-4, atol=1e-4)
            frozen = load_frozen_scalar(out, *shared_origin(out, dtype=None, placement="device"), check_on="cpu")
            assert torch.equal(frozen(IDS)[:, -1:], wanted)
            assert tensors(frozen) == tensors(model)
            trained = load_adapted_scalar(out, loading(**KINDS[kind]), head="load", check_on="cpu")
            assert torch.equal(trained(IDS)[:, -1:], wanted)

    def test_another_weight_is_loud(self, causal_folder, tokenizer, tmp_path):
        from safetensors.torch import load_file, save_file

        model = moved(load_adapted_scalar(causal_folder(), loading(), head="fresh"))
        out = export_scalar_adapter(model, tokenizer, tmp_path / "out")
        weights = load_file(out / WEIGHT_FILES[0])
        weights["base_model.model.score.weight"] *= 1.1
        save_file(weights, out / WEIGHT_FILES[0])
        with pytest.raises(ValueError, match="does not give the scores it was exported with"):
            load_scalar_model(out, head="load")
        with pytest.raises(ValueError, match="does not give the scores it was exported with"):
            load_adapted_scalar(out, loading(), head="load", check_on="cpu")

    def test_a_policys_adapter_fits_the_trunk_of_a_scalar_model(self, causal_folder, tokenizer, tmp_path):
        policy = moved(load_adapted_policy(causal_folder(), loading()))
        out = export_policy_adapter(policy, tokenizer, tmp_path / "out")
        scalar = load_adapted_scalar(out, loading(), head="fresh").eval()
        assert torch.equal(scalar.hidden(IDS), trunk_hidden(policy.eval(), IDS))
        own = load_scalar_model(out, head="fresh")
        torch.testing.assert_close(own.hidden(IDS), trunk_hidden(policy, IDS), rtol=1e-4, atol=1e-4)

    def test_an_adapter_by_plain_peft_goes_on_being_trained(self, causal_folder, tmp_path):
        folder = causal_folder()
        lora = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
        theirs = moved(peft.get_peft_model(load_causal_lm(folder), lora))
        theirs.peft_config["default"].base_model_name_or_path = str(folder)
        theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
        ours = load_adapted_policy(tmp_path / "theirs", loading())
        assert torch.equal(logits(ours), logits(theirs))
        assert load_tokenizer(tmp_path / "theirs").pad_token == "<pad>", "the base's"

    def test_pickled_adapters_are_read_without_running_anything(self, causal_folder, tokenizer, tmp_path):
        from tests.strategies.checks import Evil

        policy = moved(load_adapted_policy(causal_folder(), loading()))
        out = export_policy_adapter(policy, tokenizer, tmp_path / "out")
        weights = adapter_weights(out)
        (out / WEIGHT_FILES[0]).unlink()
        torch.save(weights, out / WEIGHT_FILES[1])
        assert torch.equal(logits(load_adapted_policy(out, loading())), logits(policy))
        torch.save({**weights, "evil": Evil()}, out / WEIGHT_FILES[1])
        with pytest.raises(ValueError, match="could run code"):
            load_adapted_policy(out, loading())


class TestRefused:
    @pytest.fixture
    def exported(self, causal_folder, tokenizer, tmp_path) -> Path:
        return export_policy_adapter(load_adapted_policy(causal_folder(), loading()), tokenizer, tmp_path / "out")

    def rewrite(self, folder: Path, **changes) -> Path:
        content = json.loads((folder / ADAPTER_FILE).read_text()) | changes
        (folder / ADAPTER_FILE).write_text(json.dumps(content))
        return folder

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"r": 8}, r"`adapter\.r` \(8\) must be that of the adapter in .* \(3\)"),
            ({"rslora": True}, r"`adapter\.rslora` \(True\) must be"),
            ({"target_modules": ["o_proj"]}, r"`adapter\.target_modules` \(\['o_proj'\]\) must be"),
        ],
    )
    def test_an_adapter_of_another_size_than_the_config_says(self, exported, options, told):
        with pytest.raises(ValueError, match=told):
            load_adapted_policy(exported, loading(**options))

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"base_model_name_or_path": None}, "has no `base_model_name_or_path`"),
            ({"base_model_name_or_path": "./gone"}, r"No model folder at '\./gone'.*of the adapter in"),
            ({"peft_type": "IA3"}, r"must hold a LoRA adapter, not `peft_type` \(IA3\)"),
            ({"modules_to_save": ["embed_tokens"]}, r"more than LoRA layers.*embed_tokens"),
            ({"bias": "all"}, r"`bias` all"),
        ],
    )
    def test_folders_that_cannot_be_used(self, exported, changes, told):
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            load_adapted_policy(self.rewrite(exported, **changes), loading())
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            load_causal_lm(exported)

    def test_an_adapter_on_an_adapter(self, exported, tmp_path):
        self.rewrite(exported, base_model_name_or_path=str(exported))
        with pytest.raises(ValueError, match="must be a whole model, not an adapter"):
            load_causal_lm(exported)

    def test_another_models_adapter(self, exported, causal_folder):
        self.rewrite(exported, base_model_name_or_path=str(causal_folder(name="wide", hidden_size=64)))
        with pytest.raises(ValueError, match="does not fit LlamaForCausalLM"):
            load_causal_lm(exported)

    def test_layers_that_are_not_there(self, causal_folder):
        with pytest.raises(ValueError, match="`adapter` does not fit LlamaForCausalLM: Target modules"):
            load_adapted_policy(causal_folder(), loading(target_modules=["query"]))

    def test_without_peft(self, causal_folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ValueError, match=r"`adapter` needs peft: pip install 'lit-rlhf\[peft\]'"):
            load_adapted_policy(causal_folder(), loading())

    def test_without_bitsandbytes(self, causal_folder, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(
            ValueError, match=r"`adapter\.base` \(nf4\) needs bitsandbytes: pip install 'lit-rlhf\[qlora\]'"
        ):
            load_adapted_policy(causal_folder(), loading(base="nf4"))

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"r": 0}, "adapter.r"),
            ({"alpha": 0}, "adapter.alpha"),
            ({"dropout": 1.0}, "adapter.dropout"),
            ({"base": "int8"}, "adapter.base"),
        ],
    )
    def test_options(self, options, told):
        with pytest.raises(ValueError, match=told):
            AdapterConfig(**options)


class TestWithoutAdapter:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_first_layers_frozen(self, causal_folder, architecture):
        policy = load_policy(str(causal_folder(architecture)), ModelConfig(freeze_layers=1))
        trunk = policy.base_model
        layers = trunk.layers if architecture == "llama" else trunk.h
        assert not any(p.requires_grad for p in layers[0].parameters())
        assert all(p.requires_grad for p in layers[1].parameters())
        assert not policy.get_input_embeddings().weight.requires_grad
        scalar = load_scalar(str(causal_folder(architecture)), ModelConfig(freeze_layers=1), head="fresh")
        assert scalar.head.weight.requires_grad
        assert sum(p.numel() for p in scalar.parameters() if not p.requires_grad) > 0

    @pytest.mark.parametrize("count", [2, 9])
    def test_all_layers_frozen_is_refused(self, causal_folder, count):
        with pytest.raises(ValueError, match=rf"`freeze_layers` \({count}\) must be less than .* \(2\)"):
            load_policy(str(causal_folder()), ModelConfig(freeze_layers=count))

    def test_not_with_an_adapter(self):
        with pytest.raises(ValueError, match=r"`freeze_layers` .* excludes `adapter`"):
            ModelConfig(freeze_layers=1, adapter=AdapterConfig())

    @pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2", "gemma2"])
    def test_a_cut_trunk_is_the_first_layers(self, causal_folder, tokenizer, tmp_path, architecture):
        folder = causal_folder(architecture)
        whole = load_causal_lm(folder)
        with torch.no_grad():
            states = whole.base_model(input_ids=IDS, output_hidden_states=True).hidden_states[1]
            cut = load_scalar_model(folder, head="fresh", num_layers=1).eval()
            norm = next(m for name, m in whole.base_model.named_children() if name in ("norm", "ln_f"))
            torch.testing.assert_close(cut.hidden(IDS), norm(states))
        assert cut.config.num_hidden_layers == 1
        cut.save_pretrained(tmp_path / "out", tokenizer)
        assert torch.equal(load_scalar_model(tmp_path / "out", head="load")(IDS), cut(IDS))

    @pytest.mark.parametrize("count", [0, 3])
    def test_more_layers_than_there_are(self, causal_folder, count):
        with pytest.raises(ValueError, match=rf"`num_layers` \({count}\) must be between 1 and .* \(2\)"):
            load_scalar_model(causal_folder(), head="fresh", num_layers=count)

    def test_a_trained_head_reads_the_last_layer(self, reward_folder):
        with pytest.raises(ValueError, match=r"`num_layers` .* needs a fresh head"):
            load_scalar_model(reward_folder(), head="load", num_layers=1)


def test_a_folder_says_its_size_and_base(causal_folder, tokenizer, tmp_path):
    folder = causal_folder()
    out = export_policy_adapter(load_adapted_policy(folder, loading(rslora=True)), tokenizer, tmp_path / "out")
    found = stored_config(out)
    assert (found.r, found.alpha, found.rslora, found.dora) == (3, 6.0, True, False)
    assert set(found.target_modules) == {"q_proj", "v_proj"}
    assert base_of(out) == str(folder)


class TestFourBits:
    """QLoRA: skipped where bitsandbytes is not installed; it runs on a CPU as well."""

    @pytest.fixture(autouse=True)
    def needed(self):
        pytest.importorskip("bitsandbytes")

    def four(self, **options) -> ModelConfig:
        return loading(base="nf4", target_modules="all-linear", **options)

    @pytest.fixture
    def folder(self, causal_folder) -> Path:
        return causal_folder(hidden_size=64, intermediate_size=128, head_dim=16)

    def test_scoring_and_update_give_the_same_bits_and_gradients_flow(self, folder):
        policy = moved(load_adapted_policy(folder, self.four()))
        kinds = {type(m).__name__ for m in policy.modules()}
        assert "Linear4bit" in kinds
        with torch.no_grad():
            before = projector(policy.eval())(trunk_hidden(policy, IDS))
        after = projector(policy.train())(trunk_hidden(policy, IDS))
        assert torch.equal(before, after)
        after.square().mean().backward()
        for name, parameter in policy.named_parameters():
            assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == ("lora_" in name), name
        whole = logits(load_causal_lm(folder))
        rounded = logits(load_frozen_lm(*shared_origin(folder, dtype=None, placement="device"), ModelConfig()))
        assert 0 < float((rounded - whole).abs().max()) < float(whole.abs().max())

    def test_all_share_one_base(self, folder):
        policy = load_adapted_policy(folder, self.four())
        critic = load_adapted_scalar(folder, self.four(), head="fresh")
        own = {p.data_ptr() for p in policy.parameters() if not p.requires_grad}
        assert {p.data_ptr() for p in critic.parameters() if not p.requires_grad} <= own

    def test_reward_model_folder(self, folder, tokenizer, tmp_path):
        model = moved(load_adapted_scalar(folder, self.four(), head="fresh")).eval()
        out = export_scalar_adapter(model, tokenizer, tmp_path / "out")
        with torch.no_grad():
            frozen = load_frozen_scalar(out, *shared_origin(out, dtype=None, placement="device"), check_on="cpu")
            assert torch.equal(frozen(IDS), model(IDS))
            with pytest.warns(UserWarning, match="exported with a base in nf4 and is loaded with one in torch.float32"):
                load_scalar_model(out, head="load")

    def test_ppo(self, tmp_path):
        from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer, same, weights, write_world

        world = write_world(tmp_path)
        found = []
        for epochs, ckpt in ((2, None), (1, None), (2, tmp_path / "half.ckpt")):
            torch.manual_seed(0)
            recorder, module = Recorder(), make_ppo(world, model=self.four())
            trainer = make_trainer(tmp_path, max_epochs=epochs, limit_val_batches=0, callbacks=[recorder])
            trainer.fit(module, make_data(world), ckpt_path=None if ckpt is None else str(ckpt))
            assert all(row["update/ratio_drift"] == 0 for row in recorder.metrics[::2])
            assert all("lora_" in key or key == "critic.head.weight" for key in module.state_dict())
            trainer.save_checkpoint(tmp_path / "half.ckpt")
            found.append(weights(module))
        assert same(found[0], found[2])
