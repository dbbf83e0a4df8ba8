"""Loading: what is read is what the checkpoint holds, and everything else is an error."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.pretrained import as_dtype, without_dropout
from lit_rlhf.models.loading.tokenizer import load_tokenizer
from tests.models.tiny import tiny_config


@pytest.mark.parametrize("path", ["/no/such/model", "./missing", "runs/sft/hf", "~/nothing-here-at-all"])
def test_missing_local_path_is_one_line(path):
    for load in (load_tokenizer, load_causal_lm):
        with pytest.raises(FileNotFoundError, match="No model folder at") as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_typo_in_a_short_relative_path(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="No model folder at 'runs/stf'"):
        load_causal_lm("runs/stf")


def test_unknown_hub_name_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="neither a folder here nor a model the hub gives") as caught:
        load_causal_lm("nobody/nothing")
    assert "\n" not in str(caught.value)


class TestCausal:
    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_equal_to_transformers(self, causal_folder, architecture):
        from transformers import AutoModelForCausalLM

        folder = causal_folder(architecture)
        ids = torch.arange(4, 16).unsqueeze(0)
        expected = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=ids).logits
        assert torch.equal(load_causal_lm(folder)(input_ids=ids).logits, expected)

    def test_dropout_is_off_in_train_mode(self, causal_folder):
        folder = causal_folder("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
        model = load_causal_lm(folder).train()
        ids = torch.arange(4, 16).unsqueeze(0)
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        assert model.config.resid_pdrop == 0.0

    def test_dtype_casts_weights_and_keeps_rotary_frequencies(self, causal_folder):
        model = load_causal_lm(causal_folder(), dtype="bfloat16")
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert model.model.rotary_emb.inv_freq.dtype == torch.float32

    def test_gradient_checkpointing_gives_the_same_gradient(self, causal_folder):
        folder = causal_folder()
        grads = []
        for option in (False, True):
            model = load_causal_lm(folder, gradient_checkpointing=option).train()
            assert model.is_gradient_checkpointing is option
            model(input_ids=torch.arange(4, 16).unsqueeze(0)).logits.square().mean().backward()
            grads.append(model.model.embed_tokens.weight.grad)
        torch.testing.assert_close(*grads)

    def test_missing_weight_is_an_error(self, causal_folder):
        folder = causal_folder()
        weights = load_file(folder / "model.safetensors")
        del weights["lm_head.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=r"does not hold these weights of LlamaForCausalLM: lm_head\.weight"):
            load_causal_lm(folder)

    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_a_reward_model_does_not_write(self, reward_folder, architecture):
        """Not even where its embeddings are tied, so that no weight is missing."""
        with pytest.raises(ValueError, match=r"a model that scores \(\w+ForSequenceClassification\), not a language"):
            load_causal_lm(reward_folder(architecture))

    def test_unused_weights_are_reported(self, causal_folder):
        folder = causal_folder()
        weights = load_file(folder / "model.safetensors")
        save_file({**weights, "extra.weight": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
        with pytest.warns(UserWarning, match=r"1 weights that are not used: extra\.weight"):
            load_causal_lm(folder)

    def test_wrong_shape_is_an_error(self, causal_folder):
        folder = causal_folder()
        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"] = torch.ones(7)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises((ValueError, RuntimeError), match=r"model\.norm\.weight|mismatch"):
            load_causal_lm(folder)

    def test_remote_code_is_off_unless_asked(self, causal_folder):
        folder = causal_folder()
        config = json.loads((folder / "config.json").read_text())
        marker = folder / "ran"
        config |= {"model_type": "custom", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "code.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
        with pytest.raises(ValueError, match="trust_remote_code"):
            load_causal_lm(folder)
        assert not marker.exists()

    def test_unknown_dtype(self):
        assert as_dtype("bfloat16") is as_dtype(torch.bfloat16) is torch.bfloat16
        with pytest.raises(ValueError, match="`dtype` must be one of float32, bfloat16, float16, not 'int8'"):
            as_dtype("int8")

    def test_without_dropout_leaves_the_original(self):
        config = tiny_config("gpt2", 10, resid_pdrop=0.5)
        assert without_dropout(config).resid_pdrop == 0.0
        assert config.resid_pdrop == 0.5
