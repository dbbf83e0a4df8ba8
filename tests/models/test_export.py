"""Export: round trips, from live models and from checkpoints, and nothing half-written or lost."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lit_rlhf.models.checkpoint import load_pickle
from lit_rlhf.models.export import (
    causal_lm_from_state,
    export_policy,
    export_scalar,
    extract_submodule_state,
    scalar_model_from_state,
)
from lit_rlhf.models.fingerprint import FILE_NAME
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.models.loading.tokenizer import load_tokenizer

IDS = torch.arange(4, 20).unsqueeze(0)


@pytest.mark.parametrize(
    ("architecture", "options"), [("llama", {}), ("llama", {"tie_word_embeddings": True}), ("gpt2", {})]
)
def test_policy_round_trip(causal_folder, tokenizer, tmp_path, architecture, options):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = load_causal_lm(causal_folder(architecture, **options))
    tokenizer.chat_template = "{{ messages[0].content }}"
    out = export_policy(model, tokenizer, tmp_path / "out")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert AutoTokenizer.from_pretrained(out).chat_template == "{{ bos_token }}{{ messages[0].content }}"
    assert load_tokenizer(out).pad_token_id == 0
    assert (out / "model.safetensors").is_file()


def test_a_folder_has_the_chat_template_of_training(causal_folder, tokenizer, tmp_path):
    from transformers import AutoTokenizer

    before = tokenizer.chat_template
    out = export_policy(load_causal_lm(causal_folder()), tokenizer, tmp_path / "out", template="hh")
    turns = [{"role": "user", "content": "a"}]
    read = AutoTokenizer.from_pretrained(out).apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert read == "<bos>\n\nHuman: a\n\nAssistant:"
    assert tokenizer.chat_template == before


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_tied_weights_are_written_once(causal_folder, tokenizer, tmp_path, dtype):
    model = load_causal_lm(causal_folder(tie_word_embeddings=True))
    out = export_policy(model, tokenizer, tmp_path / "out", dtype=dtype)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    again = load_causal_lm(out)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    expected = model.model.embed_tokens.weight.to(dtype or torch.float32).float()
    assert torch.equal(again.lm_head.weight, expected)


def test_policy_in_bf16(causal_folder, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    model = load_causal_lm(causal_folder())
    out = export_policy(model, tokenizer, tmp_path / "out", dtype=torch.bfloat16)
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    assert model.dtype == torch.float32


def test_adapter_is_merged_into_a_copy(causal_folder, tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    base = load_causal_lm(causal_folder())
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    out = export_policy(model, tokenizer, tmp_path / "out")
    torch.testing.assert_close(
        load_causal_lm(out)(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4
    )
    assert any("lora" in name for name, _ in model.named_parameters())


class TestScalar:
    @pytest.mark.parametrize("dtype", [None, torch.bfloat16])
    def test_round_trip_with_fingerprint(self, causal_folder, tokenizer, tmp_path, dtype):
        model = load_scalar_model(causal_folder(), head="fresh", lm_head=True)
        model.head.train()
        out = export_scalar(model, tokenizer, tmp_path / "out", dtype=dtype)
        assert model.head.training
        assert not model.trunk.training
        assert (out / FILE_NAME).is_file()
        for loaded in ("float32", "bfloat16"):
            again = load_scalar_model(out, head="load", dtype=loaded)
        if dtype is None:
            again = load_scalar_model(out, head="load")
            torch.testing.assert_close(again(IDS), model(IDS), rtol=0, atol=0)

    def test_adapter(self, causal_folder, tokenizer, tmp_path):
        peft = pytest.importorskip("peft")
        model = load_scalar_model(causal_folder(), head="fresh")
        model.trunk = peft.get_peft_model(
            model.trunk, peft.LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5)
        )
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
        model.train()
        out = export_scalar(model, tokenizer, tmp_path / "out")
        torch.testing.assert_close(load_scalar_model(out, head="load")(IDS), model.eval()(IDS), rtol=1e-4, atol=1e-4)

    def test_not_finite_is_refused_and_nothing_is_left(self, causal_folder, tokenizer, tmp_path):
        model = load_scalar_model(causal_folder(), head="fresh")
        model.head.weight.data[0, 0] = float("nan")
        with pytest.raises(ValueError, match="not finite"):
            export_scalar(model, tokenizer, tmp_path / "new" / "out")
        assert list((tmp_path / "new").iterdir()) == []


class TestTarget:
    @pytest.fixture
    def model(self, causal_folder):
        return load_causal_lm(causal_folder())

    def test_earlier_export_is_replaced(self, model, tokenizer, tmp_path):
        out = tmp_path / "runs" / "out"
        export_policy(model, tokenizer, out)
        (out / "stale").touch()
        model.lm_head.weight.data.zero_()
        export_policy(model, tokenizer, out)
        assert not (out / "stale").exists()
        assert load_causal_lm(out).lm_head.weight.abs().sum() == 0
        assert [p.name for p in out.parent.iterdir()] == ["out"]

    def test_what_kills_have_left_is_removed(self, model, tokenizer, tmp_path):
        ended, folder = subprocess.Popen(["true"]), tmp_path / "exports"
        ended.wait()
        for kind in ("partial", "old"):
            for process in (ended.pid, os.getpid()):  # in a container the next process may well have the same id
                (folder / f".out.{kind}-{process}").mkdir(parents=True)
                (folder / f".out.{kind}-{process}" / "half").touch()
        others = {f".out.partial-{os.getppid()}", ".outer.partial-1"}
        for name in others:
            (folder / name).mkdir()
        export_policy(model, tokenizer, folder / "out")
        assert {p.name for p in folder.iterdir()} == {*others, "out"}
        assert not (folder / "out" / "half").exists()

    def test_unless_told_not_to(self, model, tokenizer, tmp_path):
        export_policy(model, tokenizer, tmp_path / "out")
        with pytest.raises(FileExistsError, match="exists already"):
            export_policy(model, tokenizer, tmp_path / "out", overwrite=False)

    def test_a_folder_that_is_no_model_is_not_touched(self, model, tokenizer, tmp_path):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "final.tex").write_text("years of work")
        with pytest.raises(FileExistsError, match="is not a model folder"):
            export_policy(model, tokenizer, tmp_path / "thesis")
        assert (tmp_path / "thesis" / "final.tex").read_text() == "years of work"

    def test_a_failed_write_keeps_the_earlier_export(self, model, tokenizer, tmp_path, monkeypatch):
        out = export_policy(model, tokenizer, tmp_path / "runs" / "out")
        before = (out / "model.safetensors").read_bytes()
        model.lm_head.weight.data.zero_()

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            export_policy(model, tokenizer, out)
        assert (out / "model.safetensors").read_bytes() == before
        assert [p.name for p in out.parent.iterdir()] == ["out"]


class _Module(nn.Module):
    """Stands for a LightningModule with a policy and a critic."""

    def __init__(self, policy, critic):
        super().__init__()
        self.policy, self.critic = policy, critic


def _state(checkpoint):
    return load_pickle(checkpoint)["state_dict"]


class TestFromCheckpoint:
    @pytest.fixture
    def trained(self, causal_folder, tmp_path):
        folder = causal_folder(tie_word_embeddings=True)
        policy, critic = load_causal_lm(folder), load_scalar_model(folder, head="fresh", lm_head=True)
        for parameter in [*policy.parameters(), *critic.parameters()]:
            parameter.data += 0.01 * torch.randn_like(parameter)
        torch.save({"state_dict": _Module(policy, critic).state_dict(), "epoch": 3}, tmp_path / "last.ckpt")
        return folder, policy, critic, tmp_path / "last.ckpt"

    def test_policy(self, trained):
        folder, policy, _, checkpoint = trained
        model = causal_lm_from_state(folder, extract_submodule_state(_state(checkpoint), "policy"))
        assert torch.equal(model(input_ids=IDS).logits, policy(input_ids=IDS).logits)
        assert model.model.rotary_emb.inv_freq.device.type == "cpu"
        assert not any(p.is_meta for p in model.parameters())

    def test_critic(self, trained, tokenizer, tmp_path):
        folder, _, critic, checkpoint = trained
        model = scalar_model_from_state(folder, extract_submodule_state(_state(checkpoint), "critic"))
        assert torch.equal(model(IDS), critic(IDS))
        out = export_scalar(model, tokenizer, tmp_path / "out")
        assert torch.equal(load_scalar_model(out, head="load")(IDS), critic(IDS))

    def test_reward_model_configuration_serves_too(self, reward_folder):
        folder = reward_folder()
        model = load_scalar_model(folder, head="load")
        again = scalar_model_from_state(folder, model.state_dict())
        assert torch.equal(again(IDS), model(IDS))

    def test_only_the_configuration_of_the_path_is_needed(self, trained):
        folder, policy, _, checkpoint = trained
        (folder / "model.safetensors").unlink()
        model = causal_lm_from_state(folder, extract_submodule_state(_state(checkpoint), "policy"))
        assert torch.equal(model(input_ids=IDS).logits, policy(input_ids=IDS).logits)

    def test_missing_and_left_over_weights(self, trained):
        folder, _, _, checkpoint = trained
        state = extract_submodule_state(_state(checkpoint), "policy")
        with pytest.raises(
            ValueError, match=r"state dict holds weights that LlamaForCausalLM does not have: extra\.weight"
        ):
            causal_lm_from_state(folder, {**state, "extra.weight": torch.ones(1)})
        del state["model.norm.weight"]
        with pytest.raises(
            ValueError, match=r"state dict does not hold these weights of LlamaForCausalLM: model\.norm"
        ):
            causal_lm_from_state(folder, state)
        with pytest.raises(ValueError, match=r"not the weights of a scalar model: no `head\.weight`"):
            scalar_model_from_state(folder, state)

    def test_unknown_part(self, trained):
        with pytest.raises(ValueError, match="has no `reward`; it has critic, policy"):
            extract_submodule_state(_state(trained[3]), "reward")

    def test_prefix_is_a_whole_name(self):
        state = {"policy_old.w": torch.ones(1), "policy.w": torch.zeros(1)}
        assert list(extract_submodule_state(state, "policy")) == ["w"]


def test_saved_config_names_the_classes(causal_folder, tokenizer, tmp_path):
    out = export_scalar(load_scalar_model(causal_folder(), head="fresh"), tokenizer, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["pad_token_id"] == tokenizer.pad_token_id
