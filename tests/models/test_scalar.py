"""Scalar models: third-party layouts, the head, export and the fingerprint."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_rlhf.models.fingerprint import FILE_NAME, check_fingerprint, write_fingerprint
from lit_rlhf.models.frozen import HostWeights
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.models.scalar import last_positions, score_rows

TEXTS = ["Hello there!", "a", "The cat sat on the mat. It was 12 o'clock."]
ARCHITECTURES = ["llama", "gpt2", "gemma2", "qwen2"]


def _transformers_scores(folder, tokenizer, texts=TEXTS):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert model.config.num_labels == 1
    batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(1)


def _our_scores(model, tokenizer, texts=TEXTS):
    return score_rows(model.eval(), [tokenizer(t)["input_ids"] for t in texts], pad_token_id=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_third_party_folder_gives_transformers_scores(reward_folder, tokenizer, architecture):
    folder = reward_folder(architecture)
    expected = _transformers_scores(folder, tokenizer)
    assert expected.std() > 1e-3
    ours = _our_scores(load_scalar_model(folder, head="load"), tokenizer)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6 * max(1, expected.abs().max().item()))


def test_sharded_folder(reward_folder, tokenizer):
    folder = reward_folder(shard="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    ours = _our_scores(load_scalar_model(folder, head="load"), tokenizer)
    torch.testing.assert_close(ours, _transformers_scores(folder, tokenizer), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pickled", [False, True])
def test_moss_layout(causal_folder, tokenizer, pickled):
    folder = causal_folder()
    weights = load_file(folder / "model.safetensors")
    weights["reward_head.weight"] = torch.randn(1, 32)
    (folder / "model.safetensors").unlink()
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = load_scalar_model(folder, head="load", lm_head=True)
    assert torch.equal(model.head.weight, weights["reward_head.weight"])
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"]])
    expected = (model.trunk(input_ids=ids).last_hidden_state * weights["reward_head.weight"][0]).sum(-1)
    torch.testing.assert_close(model(ids), expected)


class TestHead:
    def test_missing_head_is_loud(self, causal_folder):
        with pytest.raises(ValueError, match=r"has no scalar head.*it has lm_head\.weight.*`head: fresh`"):
            load_scalar_model(causal_folder(), head="load")

    def test_fresh_head_is_drawn(self, causal_folder):
        folder = causal_folder()
        torch.manual_seed(1)
        first = load_scalar_model(folder, head="fresh").head.weight
        second = load_scalar_model(folder, head="fresh").head.weight
        assert not torch.equal(first, second)
        assert 0.5 < first.std() * 33**0.5 < 1.5

    def test_fresh_replaces_a_stored_head(self, reward_folder):
        folder = reward_folder()
        stored = load_scalar_model(folder, head="load").head.weight
        assert not torch.equal(load_scalar_model(folder, head="fresh").head.weight, stored)

    def test_unknown_head(self, causal_folder):
        with pytest.raises(ValueError, match="`head` must be 'load' or 'fresh', not 'new'"):
            load_scalar_model(causal_folder(), head="new")

    def test_more_labels_are_refused(self, reward_folder):
        with pytest.raises(ValueError, match=r"must give 1 score, but `score.weight` has shape \(3, 32\)"):
            load_scalar_model(reward_folder(num_labels=3), head="load")

    def test_bias_is_refused(self, reward_folder):
        folder = reward_folder()
        weights = load_file(folder / "model.safetensors")
        save_file({**weights, "score.bias": torch.ones(1)}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=r"has a bias \(`score.bias`\)"):
            load_scalar_model(folder, head="load")

    def test_missing_trunk_weight_is_loud(self, reward_folder):
        folder = reward_folder()
        weights = load_file(folder / "model.safetensors")
        del weights["model.norm.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=r"does not hold these weights of LlamaModel: norm\.weight"):
            load_scalar_model(folder, head="load")

    def test_architecture_that_cannot_be_saved_is_refused_at_the_start(self, causal_folder):
        with pytest.raises(ValueError, match=r"no sequence-classification class .* for 'cohere'"):
            load_scalar_model(causal_folder("cohere"), head="fresh")

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_scores_are_fp32_under_autocast_and_in_bf16(self, reward_folder, dtype):
        model = load_scalar_model(reward_folder(), head="load", dtype=dtype)
        ids = torch.arange(4, 12).unsqueeze(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores, hidden = model(ids), model.hidden(ids)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, hidden.float() @ model.head.weight[0].float(), rtol=1e-6, atol=1e-6)
        assert model.head.weight.dtype == torch.float32


def test_lm_head_gives_the_causal_models_logits(causal_folder):
    from lit_rlhf.models.loading.causal import load_causal_lm

    for architecture in ("llama", "gemma2"):
        folder = causal_folder(architecture, name=architecture)
        model = load_scalar_model(folder, head="fresh", lm_head=True)
        ids = torch.arange(4, 20).unsqueeze(0)
        expected = load_causal_lm(folder)(input_ids=ids).logits
        torch.testing.assert_close(model.lm_project(model.hidden(ids)), expected)
    plain = load_scalar_model(folder, head="fresh")
    with pytest.raises(ValueError, match="`lm_head=True`"):
        plain.lm_project(torch.zeros(1, 32))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_export_round_trip(causal_folder, tokenizer, tmp_path, architecture):
    folder = causal_folder(architecture, pad_token_id=None)
    model = load_scalar_model(folder, head="fresh", lm_head=architecture == "llama")
    before = _our_scores(model, tokenizer)
    out = tmp_path / "out"
    model.save_pretrained(out, tokenizer)
    atol = 1e-6 * max(1, before.abs().max().item())
    torch.testing.assert_close(_transformers_scores(out, tokenizer), before, rtol=0, atol=atol)
    torch.testing.assert_close(_our_scores(load_scalar_model(out, head="load"), tokenizer), before, rtol=0, atol=0)


def test_export_in_another_dtype(causal_folder, tokenizer, tmp_path):
    model = load_scalar_model(causal_folder(), head="fresh")
    model.save_pretrained(tmp_path / "out", tokenizer, dtype=torch.bfloat16)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert model.trunk.norm.weight.dtype == torch.float32


def test_state_dict_holds_trunk_and_head_only(causal_folder):
    model = load_scalar_model(causal_folder(), head="fresh")
    assert {key.split(".")[0] for key in model.state_dict()} == {"trunk", "head"}


class TestPositions:
    def test_scores_at_every_position_are_prefix_scores(self, reward_folder):
        model = load_scalar_model(reward_folder(), head="load")
        ids = torch.arange(4, 16)
        whole = model(ids.unsqueeze(0))[0]
        prefixes = torch.stack([model(ids[: n + 1].unsqueeze(0))[0, -1] for n in range(12)])
        torch.testing.assert_close(whole, prefixes)

    def test_last_positions(self):
        assert last_positions(torch.tensor([1, 4]), 4).tolist() == [0, 7]

    def test_scores_at_positions(self, reward_folder):
        model, ids = load_scalar_model(reward_folder(), head="load"), torch.arange(4, 16).view(2, 6)
        at = torch.tensor([7, 0, 11])
        torch.testing.assert_close(model(ids, at=at), model(ids).flatten()[at])

    def test_score_rows_do_not_depend_on_batching_or_padding(self, reward_folder):
        model = load_scalar_model(reward_folder(), head="load")
        rows = [list(range(4, 4 + n)) for n in (3, 17, 1, 9, 9, 30)]
        alone = torch.cat([score_rows(model, [row], pad_token_id=0) for row in rows])
        assert alone.std() > 1e-3
        for budget, pad in ((1, 0), (40, 5), (10_000, 7)):
            packed = score_rows(model, rows, pad_token_id=pad, max_batch_tokens=budget)
            torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)

    def test_packs_stay_within_the_budget(self):
        sizes = []

        def model(ids, at):
            sizes.append(ids.numel())
            return ids.flatten()[at].float()

        rows = [[n] * n for n in (5, 1, 8, 3, 3, 2, 20)]
        assert score_rows(model, rows, pad_token_id=0, max_batch_tokens=12).tolist() == [5, 1, 8, 3, 3, 2, 20]
        assert max(s for s in sizes if s != 20) <= 12
        assert len(sizes) == 4

    def test_empty_row(self, reward_folder):
        model = load_scalar_model(reward_folder(), head="load")
        with pytest.raises(ValueError, match="Row 1 has no tokens"):
            score_rows(model, [[4], []], pad_token_id=0)


class TestFingerprint:
    @pytest.fixture
    def exported(self, causal_folder, tokenizer, tmp_path):
        model = load_scalar_model(causal_folder(), head="fresh").eval()
        model.save_pretrained(tmp_path / "out", tokenizer)
        write_fingerprint(tmp_path / "out", model, tokenizer, dtype=torch.float32, device=torch.device("cpu"))
        return tmp_path / "out"

    def test_holds(self, exported):
        model = load_scalar_model(exported, head="load")
        assert check_fingerprint(exported, model, dtype=torch.float32)
        load_scalar_model(exported, head="load", dtype="bfloat16")

    def test_third_party_folder_has_none(self, reward_folder):
        folder = reward_folder()
        assert not check_fingerprint(folder, load_scalar_model(folder, head="load"), dtype=torch.float32)

    @pytest.mark.parametrize("key", ["score.weight", "model.layers.1.mlp.down_proj.weight"])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_another_weight_is_loud(self, exported, key, dtype):
        weights = load_file(exported / "model.safetensors")
        weights[key] = torch.randn_like(weights[key]) * weights[key].std()
        save_file(weights, exported / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=r"does not give the scores it was exported with.*fingerprint\.json"):
            load_scalar_model(exported, head="load", dtype=dtype)

    def test_nan_weights_are_loud(self, exported):
        weights = load_file(exported / "model.safetensors")
        weights["score.weight"][0, 0] = float("nan")
        save_file(weights, exported / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match="does not give the scores"):
            load_scalar_model(exported, head="load")

    @pytest.mark.parametrize(
        ("rank", "check_on", "scored"), [(0, "cpu", True), (1, "cpu", False), (0, None, False), (1, "meta", True)]
    )
    def test_is_checked_on_the_device_or_by_one_rank(self, exported, monkeypatch, rank, check_on, scored):
        """A large model takes minutes on the one thread that a rank of a CPU has."""
        places = []
        lend = HostWeights.on

        def on(weights, device):
            places.append(torch.device(device).type)
            return lend(weights, "cpu")

        monkeypatch.setattr(HostWeights, "on", on)
        monkeypatch.setattr("lit_rlhf.models.loading.scalar.rank", lambda: rank)
        rows = "lit_rlhf.models.fingerprint.score_rows"
        monkeypatch.setattr(rows, lambda model, ids, *, device, **options: score_rows(model, ids, **options))
        load_scalar_model(exported, head="load", check_on=check_on)
        assert places == ([check_on] if scored else [])

    def test_swapped_tokenizer_is_loud(self, exported):
        from tests.models.tiny import CHARACTERS, make_tokenizer

        make_tokenizer(CHARACTERS[::-1]).save_pretrained(exported)
        with pytest.raises(ValueError, match="not the tokenizer the reward model was trained with"):
            load_scalar_model(exported, head="load")

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"cases": [{"text": 1}], "tolerance": 1}', "\ufffd"])
    def test_damaged_file(self, exported, text):
        (exported / FILE_NAME).write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"fingerprint\.json' is not a fingerprint"):
            load_scalar_model(exported, head="load")

    def test_content(self, exported):
        content = json.loads((exported / FILE_NAME).read_text())
        assert content["dtype"] == "float32"
        assert len(content["cases"]) == 5
        assert all(case["ids"][-1] == 1 for case in content["cases"])

    @pytest.mark.parametrize("lm_head", [False, True])
    def test_attention_that_needs_an_accelerator_is_not_used_for_the_checks(
        self, causal_folder, tokenizer, tmp_path, lm_head
    ):
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask

        def only_there(*_, **__):
            raise RuntimeError("no accelerator")

        AttentionInterface.register("only_there", only_there)
        AttentionMaskInterface.register("only_there", sdpa_mask)
        folder = causal_folder(tie_word_embeddings=True)
        model = load_scalar_model(folder, head="fresh", lm_head=lm_head, attn_implementation="only_there")
        with pytest.raises(RuntimeError, match="no accelerator"):
            model(torch.tensor([[4, 5]]))
        model.trunk.set_attn_implementation("eager")
        model.save_pretrained(tmp_path / "out", tokenizer)
        write_fingerprint(tmp_path / "out", model, tokenizer, dtype=torch.float32, device=torch.device("cpu"))
        load_scalar_model(tmp_path / "out", head="load", attn_implementation="only_there")

    def test_fresh_head_is_not_compared(self, exported):
        load_scalar_model(exported, head="fresh")
