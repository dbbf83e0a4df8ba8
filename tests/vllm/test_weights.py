"""The weights that vLLM generates with are the policy's, or a sync says that they are not."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from lit_rlhf.config import AdapterConfig
from lit_rlhf.models.adapters import new_adapter
from lit_rlhf.rollout import vllm_engine as source
from lit_rlhf.rollout.sync_check import MAX_GAP_16_BITS
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from tests.vllm.worlds import answered, changed, model, prompts_of, request, same_rows, vllm_engine

LENGTHS = [3, 5, 9, 20, 40, 7, 1, 2]


@pytest.fixture
def engine():
    made = vllm_engine()
    yield made
    made.close()


def agrees(engine: Any, policy: Any) -> bool:
    wanted = request(prompts_of(LENGTHS))
    return all(same_rows(answered(TransformersEngine(), policy, wanted), answered(engine, policy, wanted)))


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "mistral", "gpt2", "phi3"])
def test_architectures_before_and_after_an_update(engine, kind) -> None:
    policy = model(kind)
    assert agrees(engine, policy)
    assert agrees(engine, changed(policy))
    assert engine.gap < 1e-4


def test_a_tied_head_is_sent_with_the_embedding(engine) -> None:
    policy = model(tie_word_embeddings=True)
    assert agrees(engine, policy)
    assert agrees(engine, changed(policy))


def test_a_tied_head_left_out_is_caught(engine, monkeypatch) -> None:
    """What `named_parameters()` would send: on a CPU vLLM keeps the old head, without a word."""
    policy = model(tie_word_embeddings=True)
    engine.sync(policy)
    monkeypatch.setattr(source, "plain_weights", lambda policy: policy.named_parameters())
    with pytest.raises(RuntimeError, match="max_gap"):
        engine.sync(changed(policy))


def test_gemma_has_no_head_of_its_own(engine) -> None:
    policy = model("gemma2", tie_word_embeddings=True)
    engine.sync(policy)
    engine.sync(changed(policy, scale=0.01))
    assert engine.gap < 5e-3


def test_an_engine_that_missed_an_update_is_caught(engine, monkeypatch) -> None:
    policy = model()
    engine.sync(policy)
    monkeypatch.setattr(engine, "_send", lambda policy: None)
    engine.sync(policy)
    with pytest.raises(RuntimeError, match=r"nats per token from the policy's \(`max_gap` 0.01\)"):
        engine.sync(changed(policy, scale=0.01))
    with pytest.raises(RuntimeError, match="sync"):
        engine.generate(request(prompts_of([3])))


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen3Moe"])
def test_experts_that_vllm_reloads_wrongly_are_refused(engine, kind) -> None:
    with pytest.raises(RuntimeError, match=f"does not load {kind}ForCausalLM rightly"):
        engine.sync(model(kind.lower().replace("moe", "_moe")))


def test_a_class_that_vllm_would_change_for_the_whole_process_is_refused(engine) -> None:
    policy, tokens = model("gpt_neox"), torch.tensor([[3, 4, 5]])
    before = policy(input_ids=tokens).logits
    with pytest.raises(ValueError, match="vLLM has no GPTNeoXForCausalLM of its own"):
        engine.sync(policy)
    assert torch.equal(policy(input_ids=tokens).logits, before)


def test_weights_that_are_not_finite_are_named(engine) -> None:
    policy = model()
    engine.sync(policy)
    with torch.no_grad():
        policy.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(RuntimeError, match=r"are nan nats per token .* weights are not finite"):
        engine.sync(policy)


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_merged_on_the_way_and_the_base_is_not_touched(engine, dora) -> None:
    policy = new_adapter(model(), AdapterConfig(r=4, alpha=8.0, dora=dora, target_modules="all-linear"), base="")
    base = {name: value.clone() for name, value in policy.state_dict().items() if "lora" not in name}
    assert agrees(engine, policy)
    plain = answered(engine, policy, request(prompts_of(LENGTHS)))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    assert agrees(engine, policy)
    assert engine.gap < 1e-4
    assert not all(same_rows(plain, answered(engine, policy, request(prompts_of(LENGTHS)))))
    assert all(torch.equal(policy.state_dict()[name], value) for name, value in base.items())


def test_bf16_is_within_its_rounding(engine) -> None:
    half = vllm_engine(dtype="bfloat16")
    half.sync(changed(model(), scale=0.01))
    half.close()
    assert 1e-5 < half.gap < MAX_GAP_16_BITS / 2


def test_the_process_is_left_as_it_was(monkeypatch) -> None:
    """Random states, threads, process group, autocast and inference mode around a whole life."""
    import numpy as np

    policy, wanted, engine = model(), request(prompts_of(LENGTHS)), vllm_engine()
    expected = answered(TransformersEngine(), policy, wanted)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    threads, setter, training = torch.get_num_threads(), torch.set_num_threads, policy.train().training
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        first = answered(engine, policy, wanted)
    assert policy.training == training
    policy.eval()
    second = answered(engine, policy, wanted)  # built in inference mode, it must still take weights outside of it
    engine.close()
    engine.close()
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.get_num_threads() == threads
    assert torch.set_num_threads is setter
    assert not torch.distributed.is_initialized()
    assert all(same_rows(expected, first))
    assert all(same_rows(expected, second))
    again = vllm_engine()  # and a second life begins where the first has ended
    assert all(same_rows(expected, answered(again, policy, wanted)))
    again.close()


def test_a_process_group_that_was_there_stays(tmp_path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        engine = vllm_engine()
        assert agrees(engine, model())
        engine.close()
        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        assert total.item() == 1
    finally:
        torch.distributed.destroy_process_group()
