"""Models of the sizes that vLLM's attention takes (heads of 32), and one call for both engines."""

from __future__ import annotations

from typing import Any

import torch

from lit_rlhf.rollout.engine import GenerationRequest, RolloutEngine
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.vllm_engine import VLLMEngine
from lit_rlhf.types import PromptBatch, Rollout

VOCABULARY, PAD, STEPS = 96, 0, 10
# Several tokens end a response, so that rows end at different steps.
ENDS = (2, 7, 11, 19, 23, 31)
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 96, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
OWN = {
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512},
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **SIZES,
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "decoder_sparse_step": 1,
    },
    "gpt_neox": {name: size for name, size in SIZES.items() if name != "num_key_value_heads"},
    "phi3": {**SIZES, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2},
    "gemma2": {**SIZES, "head_dim": 32, "sliding_window": 64, "query_pre_attn_scalar": 32},
}


def model(kind: str = "llama", seed: int = 0, **options: Any) -> Any:
    """A fresh causal LM of the named architecture, in eval mode."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**OWN.get(kind, SIZES), "tie_word_embeddings": False, **options})
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def changed(policy: Any, seed: int = 1, scale: float = 0.05) -> Any:
    """Every weight moved, as by an update."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return policy


def prompts_of(lengths: list[int], seed: int = 0) -> PromptBatch:
    """Left-padded prompts of these lengths."""
    generator, width = torch.Generator().manual_seed(seed), max(lengths)
    rows = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]
    return PromptBatch(
        prompt_ids=torch.tensor([[PAD] * (width - len(r)) + r for r in rows]),
        prompt_mask=torch.tensor([[False] * (width - len(r)) + [True] * len(r) for r in rows]),
        records=tuple({"row": i} for i in range(len(rows))),
    )


def request(prompts: PromptBatch, sampling: SamplingConfig | None = None, seed: int = 1) -> GenerationRequest:
    """What engines are asked for, with numbers drawn from ``seed``."""
    sampling = sampling or SamplingConfig(max_response_length=STEPS)
    shape, generator = (len(prompts), sampling.max_response_length), torch.Generator().manual_seed(seed)
    return GenerationRequest(
        prompts=prompts,
        sampling=sampling,
        eos_token_ids=ENDS,
        pad_token_id=PAD,
        uniforms=torch.rand(shape, generator=generator, dtype=torch.float64),
    )


def vllm_engine(**options: Any) -> VLLMEngine:
    """A small engine."""
    return VLLMEngine(**{"max_length": 512, "kv_gib": 0.1, **options})


def answered(engine: RolloutEngine, policy: Any, wanted: GenerationRequest) -> Rollout:
    """One whole series."""
    engine.sync(policy)
    rollout = engine.generate(wanted)
    engine.rest()
    return rollout


def same_rows(a: Rollout, b: Rollout) -> list[bool]:
    """Which responses are equal, token by token."""
    width = a.prompt_length
    equal = (a.input_ids[:, width:] == b.input_ids[:, width:]) | (~a.response_mask & ~b.response_mask)
    rows: list[bool] = (equal & (a.response_mask == b.response_mask)).all(1).tolist()
    return rows
