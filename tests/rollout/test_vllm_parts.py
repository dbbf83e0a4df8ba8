"""What of the vLLM engine needs no vLLM: its options, draws at mixed positions, answers, memory, and what it says."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path

import pytest
import torch

import lit_rlhf
from lit_rlhf.rollout import vllm_installed
from lit_rlhf.rollout.engine import GenerationRequest
from lit_rlhf.rollout.exact_draws import Draw, draw_tokens
from lit_rlhf.rollout.sampling import SamplingConfig, inverse_cdf, token_weights
from lit_rlhf.rollout.vllm_engine import VLLMEngine
from lit_rlhf.rollout.vllm_installed import check_installed, set_variable
from lit_rlhf.rollout.vllm_requests import as_rollout
from lit_rlhf.types import PromptBatch

EOS = (2, 5)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"draws": "own"}, r"`draws` \(own\) must be `exact` or `seed`"),
        ({"max_length": 0}, r"`max_length` \(0\) must be positive"),
        ({"max_sequences": -1}, r"`max_sequences` \(-1\) must be positive"),
        ({"kv_gib": 0.0}, r"`kv_gib` \(0.0\) must be positive"),
        ({"max_gap": math.nan}, r"`max_gap` \(nan\) must be positive"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, error) -> None:
    with pytest.raises(ValueError, match=error):
        VLLMEngine(**options)


def test_without_vllm_one_line_names_the_window(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs vllm >=0.32,<0.34: pip install 'lit-rlhf\[vllm\]'") as error:
        VLLMEngine().setup(tokenizer=None, device=torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_two_files_import_vllm_and_none_when_it_is_imported() -> None:
    package = Path(lit_rlhf.__file__).parent
    lines = {path.name: path.read_text(encoding="utf-8").splitlines() for path in package.rglob("*.py")}
    found = {(name, line) for name, own in lines.items() for line in own if re.match(r" *(from|import) vllm\b", line)}
    assert {name for name, _ in found} == {"vllm_engine.py", "vllm_inside.py"}
    assert all(line.startswith("    ") for _, line in found)


@pytest.mark.parametrize(("version", "warned"), [("0.31.2", 1), ("0.32.0", 0), ("0.33.9+cpu", 0), ("0.34.0", 1)])
def test_another_version_is_warned_of(monkeypatch, recwarn, version, warned) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(vllm_installed, "_version", lambda: version)
    check_installed()
    assert [version in str(warning.message) for warning in recwarn] == [True] * warned


def test_a_variable_that_says_otherwise_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(ValueError, match=r"`VLLM_USE_V2_MODEL_RUNNER` \(1\) must be 0"):
        set_variable("VLLM_USE_V2_MODEL_RUNNER", "0", "")


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(max_response_length=6),
        SamplingConfig(max_response_length=6, temperature=0.0),
        SamplingConfig(max_response_length=6, min_response_length=4),
        SamplingConfig(max_response_length=6, repetition_penalty=3.0),
        SamplingConfig(max_response_length=6, repetition_penalty=3.0, penalize_prompt=True, top_k=5),
    ],
    ids=["plain", "greedy", "min_length", "penalty", "penalty_with_prompt"],
)
def test_rows_at_different_positions_draw_as_each_would_alone(sampling) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 16, generator=generator) * 2
    uniforms = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    rows = [(Draw(uniforms[i], sampling, EOS), [3, 4 + i], [6 + i] * i) for i in range(4)]
    expected = []
    for i, (_, prompt, drawn) in enumerate(rows):
        seen = torch.tensor([(prompt if sampling.penalize_prompt else []) + drawn], dtype=torch.int64)
        weights = token_weights(
            logits[i : i + 1], sampling=sampling, eos_token_ids=EOS, position=len(drawn), seen_ids=seen,
            seen_mask=torch.ones_like(seen, dtype=torch.bool),
        )  # fmt: skip
        one = weights.argmax(-1) if sampling.greedy else inverse_cdf(weights, uniforms[i, len(drawn)][None])
        expected.append(int(one))
    assert draw_tokens(logits, rows).tolist() == expected


def two_rows() -> GenerationRequest:
    prompts = PromptBatch(
        prompt_ids=torch.tensor([[0, 3], [4, 6]]),
        prompt_mask=torch.tensor([[False, True], [True, True]]),
        records=({}, {}),
    )
    return GenerationRequest(
        prompts=prompts,
        sampling=SamplingConfig(max_response_length=3),
        eos_token_ids=EOS,
        pad_token_id=0,
        uniforms=torch.zeros(2, 3, dtype=torch.float64),
    )


def test_completions_become_columns() -> None:
    rollout = as_rollout(two_rows(), [[7, 5], [8, 9, 10]], [[-1.0, -2.0], [-0.5, -0.25, -0.125]])
    assert rollout.input_ids.tolist() == [[0, 3, 7, 5, 0], [4, 6, 8, 9, 10]]
    assert rollout.response_mask.tolist() == [[True, True, False], [True, True, True]]
    assert rollout.ended.tolist() == [True, False]
    assert rollout.sampler_logprobs.tolist() == [[-1.0, -2.0, 0.0], [-0.5, -0.25, -0.125]]


def test_log_probabilities_that_are_not_finite_name_their_rows() -> None:
    with pytest.raises(FloatingPointError, match=r"after prompts \[1\] are not finite"):
        as_rollout(two_rows(), [[7, 5], [8]], [[-1.0, -2.0], [math.nan]])


def test_a_draw_is_the_same_after_its_way_as_text() -> None:
    uniforms = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draw = Draw(uniforms, SamplingConfig(temperature=0.7, top_k=3, penalize_prompt=True), EOS)
    again = Draw.from_json(draw.to_json())
    assert torch.equal(again.uniforms, uniforms)
    assert (again.sampling, again.eos_token_ids) == (draw.sampling, EOS)


def test_limits_are_those_of_its_cache() -> None:
    engine = VLLMEngine(kv_gib=2.0, dtype="bfloat16")
    assert engine.limits("cuda").cache_bytes == 2 * 2**30
    assert engine.limits("cuda").copy_dtype == "bfloat16"
    assert not engine.limits("cuda").resident
    assert engine.limits("cpu").resident
    assert VLLMEngine(sleep=False).limits("cuda").resident
    assert VLLMEngine().limits("cpu").cache_bytes == 2**30
    assert engine.limits("cuda").prefill_tokens == 16_384
    assert VLLMEngine(options={"max_num_batched_tokens": 512}).limits("cpu").prefill_tokens == 512
