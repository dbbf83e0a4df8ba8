"""Padding with EOS and several tokens that end a response: what stock chat models come with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.models.loading.tokenizer import load_tokenizer
from lit_rlhf.ppo.config import LossConfig, PTXConfig
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer, same, weights


def with_tokenizer(world: Path, folder: Path, **special: Any) -> Path:
    """A copy of the world whose tokenizers have other special tokens."""
    shutil.copytree(world, folder)
    for name in ("policy", "reward"):
        tokenizer = load_tokenizer(folder / name)
        for key, token in special.items():
            setattr(tokenizer, key, token)
        tokenizer.save_pretrained(folder / name)
    return folder


def fitted(world: Path, root: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], Recorder]:
    """Weights and metrics after two iterations with every kind of row: prompts, responses, text, validation."""
    module, recorder = make_ppo(world, loss=LossConfig(ptx_coef=0.5)), Recorder()
    data = make_data(world, ptx=PTXConfig(files=[str(world / "texts.jsonl")], max_length=32))
    make_trainer(root, callbacks=[recorder]).fit(module, data)
    metrics = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in recorder.metrics]
    return weights(module), metrics, recorder


@pytest.mark.parametrize("pad", [None, "<eos>"])
def test_padding_with_eos_changes_no_bit(world, tmp_path, pad):
    expected, metrics, recorder = fitted(world, tmp_path / "a")
    lengths = {int(n) for e in recorder.experiences for n in e.response_mask.sum(1)}
    assert len(lengths) > 3, "rows of one length have no padding to go wrong"
    found, others, _ = fitted(with_tokenizer(world, tmp_path / "world", pad_token=pad), tmp_path / "b")
    assert same(found, expected)
    assert others == metrics


def test_a_response_may_end_as_the_chat_template_ends_it(world, tmp_path):
    """The policy stops there, and the reward model reads the end it was trained with."""
    other = with_tokenizer(world, tmp_path / "world")
    for name in ("policy", "reward"):
        tokenizer = load_tokenizer(other / name)
        tokenizer.chat_template = tokenizer.chat_template.replace("{{ eos_token }}", "<unk>")
        tokenizer.save_pretrained(other / name)
    _, _, recorder = fitted(other, tmp_path / "b")
    ends = {
        int(row[: int(mask.sum())][-1])
        for e in recorder.experiences
        for row, mask, ended in zip(e.response_ids, e.response_mask, e.ended, strict=True)
        if ended
    }
    assert ends == {1, 2}  # <eos> and <unk>


def test_exported_folders_say_what_is_padded_with(world, tmp_path):
    other = with_tokenizer(world, tmp_path / "world", pad_token=None)
    module = make_ppo(other)
    module.configure_model()
    module.export(tmp_path / "out")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["pad_token_id"] == 1, name
    with pytest.warns(UserWarning, match="pads with EOS.*plain transformers.*`model.pad_token`"):
        module.critic.save_pretrained(tmp_path / "critic", module.tokenizer)
