"""What of vLLM only a GPU shows, each mode in a process of its own, for vLLM reads its variables once.

python -m check_gpu.vllm_modes MODE DEVICE      # one JSON object on stdout
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

MODES = {
    "exact": {},
    "v2-runner": {"VLLM_USE_V2_MODEL_RUNNER": "1"},
    "batch-invariant": {"VLLM_BATCH_INVARIANT": "1"},
}
"""By name, the variables of vLLM that each sets. A CPU knows the first alone: the others need Triton."""
ROWS, PROMPT, RESPONSE, VOCABULARY = 24, 40, 24, 128
FREED = 0.8
"""Of what vLLM took at its start, what sleeping must give back."""


def installed() -> bool:
    """Whether there is a vLLM."""
    return find_spec("vllm") is not None


def seen(device: str) -> dict[str, dict[str, Any]]:
    """What each mode found; a process that ended badly is an `error`."""
    found = {}
    for mode, variables in list(MODES.items())[: None if device == "cuda" else 1]:
        command = [sys.executable, "-m", "check_gpu.vllm_modes", mode, device]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})
        lines = done.stdout.strip().splitlines()
        last = (done.stderr.strip().splitlines() or [""])[-1][:200]
        found[mode] = json.loads(lines[-1]) if done.returncode == 0 else {"error": last}
    return found


def judged(found: dict[str, dict[str, Any]], device: str) -> list[str]:
    """What of it is not as it must be, in words."""
    wrong = [f"{mode}: {numbers['error']}" for mode, numbers in found.items() if "error" in numbers]
    for mode, numbers in found.items():
        if "error" in numbers:
            continue
        wrong += [f"{mode}: the same request again, other rows"] * (numbers["again"] < ROWS)
        wrong += [f"{mode}: greedy rows are not the policy's after an update"] * (numbers["greedy"] < ROWS)
        if mode != "v2-runner":  # whose draws may follow the batch, where logits do
            wrong += [f"{mode}: halves are not the whole"] * (numbers["halves"] < ROWS)
        if device == "cuda":
            wrong += [f"{mode}: sleeping gave back {numbers['freed']:.0%}"] * (numbers["freed"] < FREED)
    return wrong


def look(mode: str, device: str) -> dict[str, Any]:
    """Two updates with a sleep between: gaps, rows equal to the policy's own greedy ones, again and in halves."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from lit_rlhf.rollout.sampling import SamplingConfig
    from lit_rlhf.rollout.transformers_engine import TransformersEngine
    from lit_rlhf.rollout.vllm_engine import VLLMEngine

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.1, tie_word_embeddings=True,
    )  # fmt: skip
    policy = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device).eval()
    engine = VLLMEngine(draws="exact" if mode == "exact" else "seed", kv_gib=1.0)
    before = _free(device)
    engine.sync(policy)
    taken = before - _free(device)
    engine.rest()
    freed = 1 - (before - _free(device)) / taken if taken else 0.0
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    engine.sync(policy)  # a reload under CUDA graphs that were captured before
    warm, cold = (_request(SamplingConfig(max_response_length=RESPONSE, temperature=t), device) for t in (0.9, 0.0))
    own = TransformersEngine()
    own.sync(policy)
    whole = engine.generate(warm)
    parts = [engine.generate(_rows(warm, slice(start, start + ROWS // 2))) for start in (0, ROWS // 2)]
    numbers = {
        "gap": engine.gap,
        "freed": freed,
        "again": _equal(whole, [engine.generate(warm)]),
        "halves": _equal(whole, parts),
        "greedy": _equal(own.generate(cold), [engine.generate(cold)]),
    }
    if mode == "exact":
        numbers["drawn"] = _equal(own.generate(warm), [whole])
    engine.close()
    return numbers


def _free(device: str) -> int:
    import torch

    return torch.cuda.mem_get_info()[0] if device == "cuda" else 0


def _request(sampling: Any, device: str) -> Any:
    import torch

    from lit_rlhf.rollout.engine import GenerationRequest
    from lit_rlhf.types import PromptBatch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (ROWS, PROMPT), generator=generator)
    uniforms = torch.rand(ROWS, RESPONSE, generator=generator, dtype=torch.float64)
    prompts = PromptBatch(
        prompt_ids=ids.to(device),
        prompt_mask=torch.ones_like(ids, dtype=torch.bool).to(device),
        records=({},) * ROWS,
    )
    return GenerationRequest(
        prompts=prompts, sampling=sampling, eos_token_ids=(2,), pad_token_id=0, uniforms=uniforms.to(device)
    )


def _rows(request: Any, part: slice) -> Any:
    prompts = request.prompts
    some = replace(
        prompts, prompt_ids=prompts.prompt_ids[part], prompt_mask=prompts.prompt_mask[part],
        records=prompts.records[part],
    )  # fmt: skip
    return replace(request, prompts=some, uniforms=request.uniforms[part])


def _equal(whole: Any, parts: list[Any]) -> int:
    """How many rows have the same tokens."""
    import torch

    ids = torch.cat([part.input_ids for part in parts])
    return int((ids == whole.input_ids).all(1).sum())


if __name__ == "__main__":
    print(json.dumps(look(*sys.argv[1:3])))
