"""A real server: the rows of the transformers engine after every update, whichever way the weights come."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.rollout.vllm_server_engine import VLLMServerEngine
from tests.vllm.serve import KEY, vllm_serve, write_served
from tests.vllm.worlds import answered, changed, model, prompts_of, request, same_rows

pytestmark = pytest.mark.timeout(1200)
LENGTHS = [3, 5, 9, 20, 40, 7, 1, 2, 200, 150]
DRAWS = ("--logits-processors", "lit_rlhf.rollout.vllm_inside:Draws")
SAMPLING = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.2, "min_response_length": 3}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory):
    with vllm_serve(write_served(model(tie_word_embeddings=True), tmp_path_factory.mktemp("served")), *DRAWS) as url:
        yield url


@pytest.fixture(autouse=True)
def key(monkeypatch) -> None:
    monkeypatch.setenv("SERVER_KEY", KEY)


def policy(seed: int = 0):
    return model(seed=seed, tie_word_embeddings=True)


def engine(url: str, **options) -> VLLMServerEngine:
    return VLLMServerEngine(url, **{"token_env": "SERVER_KEY", "timeout": 120.0, **options})


def agrees(made: VLLMServerEngine, trained) -> bool:
    wanted = request(prompts_of(LENGTHS), SamplingConfig(max_response_length=10, **SAMPLING))
    ours = answered(TransformersEngine(sampler_logprobs=True), trained, wanted)
    theirs = answered(made, trained, wanted)
    torch.testing.assert_close(ours.sampler_logprobs, theirs.sampler_logprobs, atol=2e-5, rtol=1e-5)
    return all(same_rows(ours, theirs)) and torch.equal(ours.ended, theirs.ended)


@pytest.mark.parametrize("transfer", ["files", "broadcast"])
def test_rows_and_log_probabilities_are_those_of_the_transformers_engine(url, transfer) -> None:
    trained, made = policy(), engine(url, transfer=transfer)
    for update in range(3):
        assert agrees(made, trained)
        assert made.gap < 1e-4
        changed(trained, seed=update)
    made.close()


def test_seeds_repeat_whatever_the_order(url) -> None:
    trained, made = policy(seed=2), engine(url, draws="seed")
    sampling = SamplingConfig(max_response_length=10, temperature=0.9, top_k=40)
    one = answered(made, trained, request(prompts_of(LENGTHS), sampling))
    two = answered(made, trained, request(prompts_of(LENGTHS), sampling))
    others = answered(made, trained, request(prompts_of(LENGTHS), sampling, seed=2))
    assert all(same_rows(one, two))
    assert not all(same_rows(one, others))


def test_weights_that_do_not_arrive_are_caught(url, monkeypatch) -> None:
    trained, made = policy(seed=3), engine(url)
    made.sync(trained)
    asked = made._workers
    monkeypatch.setattr(made, "_workers", lambda method, *given: None if given else asked(method))
    with pytest.raises(RuntimeError, match=r"nats per token from the policy's \(`max_gap` 0.01\)"):
        made.sync(changed(trained))


def test_a_wrong_key_is_refused(url, monkeypatch) -> None:
    made = engine(url)
    monkeypatch.setenv("SERVER_KEY", "another")
    with pytest.raises(RuntimeError, match="HTTP 401"):
        made.sync(policy())


@pytest.mark.distributed
def test_two_tensor_parallel_workers_take_the_same_weights(tmp_path) -> None:
    trained = policy(seed=4)
    with vllm_serve(write_served(trained, tmp_path), *DRAWS, "--tensor-parallel-size", "2") as url:
        for transfer in ("files", "broadcast"):
            made = engine(url, transfer=transfer)
            assert agrees(made, trained)
            assert agrees(made, changed(trained))
            made.close()
