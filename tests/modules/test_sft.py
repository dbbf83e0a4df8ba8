"""SFTModule: learns in seconds, learns responses only, resumes bit for bit, and is the same in any micro-batches."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM

from lit_rlhf.config import OptimizerConfig, ScheduleConfig
from lit_rlhf.data.micro import SUPERVISED_TOKENS
from lit_rlhf.datamodules.sft import SFTDataModule
from lit_rlhf.modules import sft
from lit_rlhf.modules.sft import SFTModule
from lit_rlhf.rollout.sampling import SamplingConfig
from tests.modules.tiny_ppo import LETTERS, Recorder, make_trainer, same, weights


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen dialogues; the response to a letter is that letter three times, the prompt's rest is noise."""
    path = tmp_path_factory.mktemp("dialogues") / "dialogues.jsonl"
    rows = [{"prompt": LETTERS[i % 8] + LETTERS[(3 * i) % 8], "completion": LETTERS[i % 8] * 3} for i in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_sft(world: Path, kind: type[SFTModule] = SFTModule, **options) -> SFTModule:
    defaults = {
        "policy": str(world / "policy"),
        "optimizer": OptimizerConfig(lr=1e-2),
        "schedule": ScheduleConfig(kind="constant", warmup=0),
        "sampling": SamplingConfig(temperature=0, max_response_length=6),
    }
    return kind(**{**defaults, **options})


def make_data(path: Path, **options) -> SFTDataModule:
    return SFTDataModule(**{"train": str(path), "val": str(path), "batch_size": 4, "max_length": 32, **options})


def test_learns_to_respond(world, dialogues, tmp_path) -> None:
    module, data = make_sft(world), make_data(dialogues, test=str(dialogues))
    before = make_trainer(tmp_path).validate(module, data, verbose=False)[0]
    make_trainer(tmp_path, max_epochs=40, limit_val_batches=0).fit(module, data)
    after = make_trainer(tmp_path).test(module, data, verbose=False)[0]
    assert after["test/loss"] < 0.2 < before["val/loss"]
    assert after["test/perplexity"] == pytest.approx(math.exp(after["test/loss"]), rel=1e-5)
    rows = [row for batch in make_trainer(tmp_path).predict(module, data) for row in batch]
    right = [row["response"] == row["record"]["completion"] for row in rows]
    assert len(rows) == 16
    assert sum(right) >= 14, [(row["prompt"], row["response"]) for row in rows]
    assert all(row["ended"] for row, ok in zip(rows, right, strict=True) if ok)


def test_loss_is_the_mean_over_response_tokens(world, dialogues, tmp_path) -> None:
    """Term by term with transformers' own logits."""
    module, data = make_sft(world), make_data(dialogues, batch_size=16)
    logged = make_trainer(tmp_path).validate(module, data, verbose=False)[0]
    model = AutoModelForCausalLM.from_pretrained(world / "policy")
    total, count = 0.0, 0
    for row in data.rows["val"]:
        ids = row.ids.long()
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0].log_softmax(-1)
        for position in range(1, len(ids)):
            if row.learned[position]:
                total, count = total - float(logprobs[position - 1, ids[position]]), count + 1
    assert count == 16 * 4, "a response is three letters and EOS"
    assert logged["val/loss"] == pytest.approx(total / count, rel=1e-5)


def test_prompt_tokens_are_not_learned(world, dialogues, tmp_path) -> None:
    """Whatever stands in the learned rows' prompts as labels, only their responses are labels."""
    module, data = make_sft(world), make_data(dialogues, batch_size=16)
    make_trainer(tmp_path).validate(module, data, verbose=False)
    (batch,) = data.val_dataloader()
    module.policy.zero_grad()
    text = batch.content
    module.text_loss(text, 1.0).backward()
    head = module.policy.get_output_embeddings().weight.grad
    # The gradient of the logits sums to -count + probability mass; a token that is never a label never gets a negative
    # bias. Take the one with the largest share of the prompt that no response holds: the template's colon.
    colon = module.tokenizer.convert_tokens_to_ids(":")
    assert not bool((text.input_ids[text.loss_mask] == colon).any())
    assert bool((text.input_ids[text.attention_mask & ~text.loss_mask] == colon).any())
    with torch.no_grad():
        hidden = module.policy.model(input_ids=text.input_ids, attention_mask=text.attention_mask.long())[0][:, :-1]
        learned = text.loss_mask[:, 1:]
        mass = module.policy.lm_head(hidden[learned]).softmax(-1)[:, colon]
    torch.testing.assert_close(head[colon], mass @ hidden[learned], rtol=1e-4, atol=1e-5)


def test_micro_batching_does_not_change_the_update(world, dialogues, tmp_path) -> None:
    results = []
    for budget in (12, 100_000):
        module = make_sft(world, micro_batch_tokens=budget)
        make_trainer(tmp_path, max_steps=4, max_epochs=-1, limit_val_batches=0).fit(module, make_data(dialogues))
        results.append(weights(module))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=0, atol=1e-4, msg=name)


def test_a_pass_has_as_many_tokens_as_suit_the_device(world, dialogues, tmp_path, monkeypatch) -> None:
    assert [SUPERVISED_TOKENS.on(place, None) for place in ("cpu", "cuda")] == [4096, 16384]
    assert [SUPERVISED_TOKENS.on(place, 64) for place in ("cpu", "cuda")] == [64, 64]
    budgets = set()
    cut = sft.row_micro_batches
    monkeypatch.setattr(sft, "row_micro_batches", lambda mask, most, **key: budgets.add(most) or cut(mask, most, **key))
    make_trainer(tmp_path, max_steps=1, max_epochs=-1).fit(make_sft(world), make_data(dialogues))
    assert budgets == {4096}


@pytest.mark.parametrize("stop", [4, 6], ids=["between epochs", "in the middle of an epoch"])
def test_resume_is_bit_for_bit(world, dialogues, tmp_path, stop) -> None:
    straight, half = make_sft(world), make_sft(world)
    options = {"limit_val_batches": 0}
    make_trainer(tmp_path, max_epochs=3, **options).fit(straight, make_data(dialogues))
    saver = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=stop)
    make_trainer(tmp_path, max_epochs=-1, max_steps=stop, enable_checkpointing=True, callbacks=[saver], **options).fit(
        half, make_data(dialogues)
    )
    resumed, recorder = make_sft(world), Recorder()
    make_trainer(tmp_path, max_epochs=3, callbacks=[recorder], **options).fit(
        resumed, make_data(dialogues), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True
    )
    assert len(recorder.metrics) == 12 - stop
    assert not same(weights(half), weights(straight))
    assert same(weights(resumed), weights(straight))


@pytest.mark.parametrize("at", [0, 2, 3, 4])
def test_resume_from_inside_a_step_does_it_again(world, dialogues, tmp_path, at) -> None:
    class SavesInside(SFTModule):
        def optimize(self, losses):
            if self.global_step == at:
                self.trainer.save_checkpoint(tmp_path / "inside.ckpt")
            return super().optimize(losses)

    straight, resumed, recorder = make_sft(world, kind=SavesInside), make_sft(world), Recorder()
    make_trainer(tmp_path, max_epochs=3, limit_val_batches=0).fit(straight, make_data(dialogues))
    make_trainer(tmp_path, max_epochs=3, limit_val_batches=0, callbacks=[recorder]).fit(
        resumed, make_data(dialogues), ckpt_path=str(tmp_path / "inside.ckpt"), weights_only=True
    )
    assert len(recorder.metrics) == 12 - at
    assert same(weights(resumed), weights(straight))


def test_plain_text_is_learned_from_its_second_token(world, tmp_path) -> None:
    module, recorder = make_sft(world), Recorder()
    data = make_data(world / "texts.jsonl", val=None)
    make_trainer(tmp_path, max_steps=1, max_epochs=-1, callbacks=[recorder]).fit(module, data)
    (batch,) = [b for b in data.train_dataloader() if b.content.attention_mask.any()][:1]
    assert not batch.content.loss_mask[:, 0].any()
    assert torch.equal(batch.content.loss_mask[:, 1:], batch.content.attention_mask[:, 1:])
    assert recorder.metrics[0]["update/tokens"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"micro_batch_tokens": 0}, r"`micro_batch_tokens` \(0\) must be at least 1"),
        ({"micro_batch_tokens": "16"}, r"`micro_batch_tokens` \('16'\) must be a whole number, or None"),
        ({"micro_batch_tokens": True}, r"`micro_batch_tokens` \(True\) must be a whole number"),
        ({"micro_batch_tokens": 2.5}, r"`micro_batch_tokens` \(2.5\) must be a whole number"),
        ({"on_non_finite": "x"}, "`stop`"),
    ],
)
def test_options_are_checked_at_construction(world, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_sft(world, **options)
