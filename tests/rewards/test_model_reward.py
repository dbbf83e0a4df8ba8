"""The reward model as a source of reward: ids with the policy's tokenizer, text with another."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lit_rlhf.models.frozen import HostWeights
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.models.scalar import score_rows
from lit_rlhf.rewards.model import ModelReward, encode_again, translate_special
from tests.models.tiny import CHARACTERS, make_tokenizer
from tests.rewards.requests import make_request

PROMPTS, RESPONSES = ["Hi there. ", "What is 12?", "a"], ["Hello!", "A number, of course.", ""]
CPU = torch.device("cpu")


def _transformers_scores(folder, tokenizer, texts):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.stack([model(**tokenizer(text, return_tensors="pt")).logits[0, 0] for text in texts])


@pytest.mark.parametrize("placement", ["device", "cpu"])
@pytest.mark.parametrize("budget", [1, 50, 16384])
def test_same_tokenizer_scores_the_ids(reward_folder, tokenizer, placement, budget):
    folder = reward_folder()
    reward = ModelReward(str(folder), placement=placement, max_batch_tokens=budget)
    reward.setup(device=CPU, tokenizer=tokenizer)
    expected = _transformers_scores(
        folder, tokenizer, [f"{p}{r}<eos>" for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    )
    assert expected.std() > 1e-2
    for padding in (0, 7):
        scores = reward(make_request(tokenizer, PROMPTS, RESPONSES, extra_padding=padding)).scores
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert reward.shares_vocabulary


def test_cut_response_is_scored_without_eos(reward_folder, tokenizer):
    folder = reward_folder()
    reward = ModelReward(str(folder))
    reward.setup(device=CPU, tokenizer=tokenizer)
    scores = reward(make_request(tokenizer, PROMPTS[:1], RESPONSES[:1], ended=[False])).scores
    torch.testing.assert_close(
        scores, _transformers_scores(folder, tokenizer, [PROMPTS[0] + RESPONSES[0]]), atol=1e-5, rtol=1e-5
    )


def test_whatever_the_policy_stopped_at_the_model_reads_its_own_end(reward_folder, tokenizer):
    """A policy with several EOS tokens (Gemma, Llama 3) may stop at one that the reward model never saw."""
    folder = reward_folder()
    reward = ModelReward(str(folder))
    reward.setup(device=CPU, tokenizer=tokenizer)
    request = make_request(tokenizer, PROMPTS, RESPONSES, ended=[True, False, True])
    expected = reward(request).scores
    ids = request.rollout.input_ids.clone()
    last = torch.tensor([int(row.nonzero().max()) for row in request.rollout.attention_mask])
    ids[[0, 2], last[[0, 2]]] = tokenizer.unk_token_id
    stopped = dataclasses.replace(request, rollout=dataclasses.replace(request.rollout, input_ids=ids))
    assert torch.equal(reward(stopped).scores, expected)
    ids[1, last[1]] = tokenizer.unk_token_id  # a response that was cut is read as it is
    assert reward(stopped).scores[1] != expected[1]


def test_the_end_is_that_of_the_prompts_template(reward_folder, tokenizer):
    """With a named template EOS, whatever the reward model's tokenizer has as its chat template."""
    folder, chat = reward_folder(), make_tokenizer()
    chat.chat_template = "{% for m in messages %}{{ m['content'] }}<unk>{% endfor %}"
    chat.save_pretrained(folder)
    reward = ModelReward(str(folder))
    reward.setup(device=CPU, tokenizer=tokenizer)
    request = make_request(tokenizer, PROMPTS, RESPONSES)  # ends with EOS
    for template, end in (("hh", "<eos>"), (None, "<unk>")):
        texts = [f"{p}{r}{end}" for p, r in zip(PROMPTS, RESPONSES, strict=True)]
        found = reward(dataclasses.replace(request, template=template)).scores
        torch.testing.assert_close(found, _transformers_scores(folder, tokenizer, texts), rtol=1e-5, atol=1e-5)


def test_other_tokenizer_scores_equal_scoring_the_text(reward_folder, tokenizer):
    """Policy with other ids, another EOS string and a BOS; the reward model reads as its own tokenizer does."""
    folder = reward_folder()
    policy = make_tokenizer(CHARACTERS[::-1], bos=True)
    policy.add_special_tokens({"eos_token": "<stop>"})
    prompts = ["Hi.<stop>Yes? ", "What is 12?", "a"]
    request = make_request(policy, prompts, RESPONSES, ended=[True, False, True])
    assert request.prompts[0].startswith("<bos>")
    reward = ModelReward(str(folder), max_batch_tokens=40)
    reward.setup(device=CPU, tokenizer=policy)
    assert not reward.shares_vocabulary
    texts = ["<bos>Hi.<eos>Yes? Hello!<eos>", "<bos>What is 12?A number, of course.", "<bos>a<eos>"]
    expected = _transformers_scores(folder, tokenizer, texts)
    torch.testing.assert_close(reward(request).scores, expected, rtol=1e-5, atol=1e-5)


class TestEncoding:
    def test_special_tokens_are_exchanged(self):
        source, target = make_tokenizer(bos=True), make_tokenizer()
        target.add_special_tokens({"eos_token": "<stop>"})
        assert translate_special("<bos>a<eos>b", source, target) == "a<stop>b"

    @pytest.mark.parametrize("adds_bos", [False, True])
    @pytest.mark.parametrize("prompt", ["ab", "<bos>ab"])
    def test_exactly_one_bos_and_eos(self, adds_bos, prompt):
        tokenizer = make_tokenizer(bos=adds_bos)
        assert encode_again(tokenizer, prompt, "c", ended=True) == [3, 4, 5, 6, 1]
        assert encode_again(tokenizer, prompt, "c", ended=False) == [3, 4, 5, 6]

    def test_no_bos_of_its_own(self):
        tokenizer = make_tokenizer()
        tokenizer.bos_token = "<eos>"
        assert encode_again(tokenizer, "ab", "c", ended=True) == [4, 5, 6, 1]
        assert encode_again(tokenizer, "", "", ended=False) == [1]

    def test_special_tokens_count_in_the_prompt_only(self):
        tokenizer = make_tokenizer(CHARACTERS + "<>")
        ids = encode_again(tokenizer, "a<eos>b", "c<eos>", ended=True)
        assert ids[:5] == [3, 4, 1, 5, 6]
        assert ids[5:-1] == tokenizer("<")["input_ids"] + tokenizer("eos")["input_ids"] + tokenizer(">")["input_ids"]
        assert ids[-1] == 1

    def test_no_space_in_front_of_a_response(self):
        """Llama 2's tokenizer puts one before whatever it is given; in the middle of a row there is none."""
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {"<eos>": 0, "<unk>": 1, "\u2581": 2, "\n": 3, "a": 4, "b": 5}
        backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>")
        assert tokenizer("b", add_special_tokens=False)["input_ids"] == [2, 5]
        assert encode_again(tokenizer, "a", "b", ended=True) == [2, 4, 5, 0]


def test_before_setup(tokenizer):
    reward = ModelReward("somewhere")
    with pytest.raises(ValueError, match="call `setup` first"):
        reward(make_request(tokenizer, PROMPTS, RESPONSES))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "`dtype` must be one of"),
        ({"placement": "gpu"}, "`placement` must be"),
        ({"max_batch_tokens": 0}, "`max_batch_tokens` \\(0\\) must be at least 1"),
    ],
)
def test_options_are_checked_before_anything_loads(options, message):
    with pytest.raises(ValueError, match=message):
        ModelReward("nowhere", **options)


def test_a_causal_lm_is_no_reward_model(causal_folder, tokenizer):
    reward = ModelReward(str(causal_folder()))
    with pytest.raises(ValueError, match="has no scalar head"):
        reward.setup(device=CPU, tokenizer=tokenizer)


def test_pad_equal_to_eos_does_not_matter_here(reward_folder, tokenizer):
    folder = reward_folder()
    make_tokenizer(pad="<eos>").save_pretrained(folder)
    reward = ModelReward(str(folder))
    reward.setup(device=CPU, tokenizer=tokenizer)
    rows = [tokenizer(p + r)["input_ids"] + [1] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    expected = score_rows(load_scalar_model(folder, head="load").eval(), rows, pad_token_id=0)
    torch.testing.assert_close(
        reward(make_request(tokenizer, PROMPTS, RESPONSES)).scores, expected, rtol=1e-5, atol=1e-5
    )


def test_row_beyond_the_context(reward_folder, tokenizer):
    reward = ModelReward(str(reward_folder()))
    reward.setup(device=CPU, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"together \(141 tokens\) must fit the model's context \(128 tokens\)"):
        reward(make_request(tokenizer, ["a" * 100], ["b" * 40]))


def test_model_goes_where_the_rollout_is(reward_folder, tokenizer, monkeypatch):
    """`setup` may run while the module is still on the CPU, and with the wrong device."""
    reward = ModelReward(str(reward_folder()), placement="cpu")
    reward.setup(device=torch.device("meta"), tokenizer=tokenizer)
    asked = []
    lend = HostWeights.on
    monkeypatch.setattr(HostWeights, "on", lambda weights, device: asked.append(device) or lend(weights, device))
    assert reward(make_request(tokenizer, PROMPTS, RESPONSES)).scores.isfinite().all()
    assert asked == [CPU]


def test_describe(tmp_path):
    assert ModelReward("org/rm", name="rm", dtype="float32").describe() == {
        "name": "rm", "type": "ModelReward", "path": "org/rm", "dtype": "float32", "placement": "device",
    }  # fmt: skip
