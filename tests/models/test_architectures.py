"""The table of docs/models.md, on a tiny random model of each row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.models.scalar import sequence_classifier
from lit_rlhf.rollout.engine import GenerationRequest
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import PromptBatch

VOCABULARY, PAD, EOS, STEPS, ROWS = 48, 0, 2, 8, 4
ENDS = (EOS, 7, 11, 19, 23, 31, 37, 41)
PLAIN = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8,
}  # fmt: skip
WINDOW = {"sliding_window": 4}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
OLD = {k: PLAIN[k] for k in ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
SIZES: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "falcon": {**OLD, "new_decoder_architecture": False},
    "gemma2": {**PLAIN, **WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": {**PLAIN, **WINDOW, "query_pre_attn_scalar": 8},
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_neox": {**OLD, "intermediate_size": 48},
    "gpt_oss": {**PLAIN, **WINDOW, **EXPERTS},
    "mixtral": {**PLAIN, **EXPERTS},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "expansion_ratio": 2},
    "opt": {**OLD, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen3_moe": {**PLAIN, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
"""Of those that do not have Llama's options."""
PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TABLE = {
    name: [cell.strip() == "yes" for cell in cells.split("|")[:3]]
    for name, cells in re.findall(
        r"^\| `(\w+)` \|((?: (?:yes|no) \|){3})$", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
}


def tiny(name: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    special = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**special, **SIZES.get(name, PLAIN)}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # so that tokens differ
    return model.eval()


def drawn_as_by_generate(model: Any) -> bool:
    """Whether the engine's greedy tokens are those of `generate`, one prompt at a time."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in (9, 2, 6, 1)]
    width = max(map(len, prompts))
    batch = PromptBatch(
        prompt_ids=torch.tensor([[PAD] * (width - len(p)) + p for p in prompts]),
        prompt_mask=torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts]),
        records=({},) * ROWS,
    )
    engine = TransformersEngine()
    engine.sync(model)
    sampling = SamplingConfig(max_response_length=STEPS, temperature=0.0)
    uniforms = torch.rand(ROWS, STEPS, dtype=torch.float64, generator=generator)
    request = GenerationRequest(
        prompts=batch, sampling=sampling, eos_token_ids=ENDS, pad_token_id=PAD, uniforms=uniforms
    )
    found = engine.generate(request)
    ours = [ids[mask].tolist() for ids, mask in zip(found.response_ids, found.response_mask, strict=True)]
    for prompt, response in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])
        whole = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=STEPS, do_sample=False,
            eos_token_id=list(ENDS), pad_token_id=PAD,
        )  # fmt: skip
        if response != whole[0, len(prompt) :].tolist():
            return False
    return True


def is_saved_with_a_head(model: Any) -> bool:
    try:
        sequence_classifier(model.config)
    except ValueError as error:
        assert "bias-free `score` head" in str(error)
        return False
    return True


def with_adapter(model: Any) -> Any:
    import peft

    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear")).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return wrapped


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.filterwarnings("ignore")
def test_the_table_is_true(name: str) -> None:
    pytest.importorskip("peft")
    model = tiny(name)
    found = [drawn_as_by_generate(model), is_saved_with_a_head(model), drawn_as_by_generate(with_adapter(model))]
    assert found == TABLE[name]


def test_there_is_a_table() -> None:
    assert len(TABLE) >= 26
    assert TABLE.keys() >= SIZES.keys()
