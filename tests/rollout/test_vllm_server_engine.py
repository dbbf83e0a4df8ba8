"""The engine of a server against one of a tiny model: the same rows, weights that arrive, and what goes wrong."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.rollout.vllm_server_engine import VLLMServerEngine
from tests.rollout.served import Served, serving
from tests.vllm.worlds import answered, changed, model, prompts_of, request, same_rows

LENGTHS = [3, 5, 2, 7]
TOKEN = "s3cret-t0ken"


@pytest.fixture
def served():
    return Served(model(seed=9, num_hidden_layers=1))


@pytest.fixture
def url(served):
    with serving(served) as address:
        yield address


@pytest.fixture
def policy():
    return model(num_hidden_layers=1)


def wanted(**options: Any) -> Any:
    return request(prompts_of(LENGTHS), SamplingConfig(max_response_length=6, **options))


def engine(url: str, **options: Any) -> VLLMServerEngine:
    return VLLMServerEngine(url, **{"backoff": 0.0, "retries": 2, **options})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"draws": "own"}, r"`draws` \(own\) must be `exact` or `seed`"),
        ({"transfer": "mail"}, r"`transfer` \(mail\) must be `files` or `broadcast`"),
        ({"max_gap": math.nan}, r"`max_gap` \(nan\) must be positive"),
        ({"timeout": 0}, r"`timeout` \(0\) must be positive"),
        ({"concurrency": 0}, r"`concurrency` \(0\) must be positive"),
        ({"retries": -1}, r"`retries` \(-1\) must not be negative"),
        ({"url": "localhost:8000"}, r"`url` \('localhost:8000'\) must start with http"),
        ({"url": "http://a:b@c"}, r"`url` must not hold a user name"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, error) -> None:
    with pytest.raises(ValueError, match=error):
        VLLMServerEngine(**{"url": "http://127.0.0.1", **options})


@pytest.mark.parametrize("transfer", ["files", "broadcast"])
def test_rows_are_those_of_the_transformers_engine_after_every_update(url, policy, transfer) -> None:
    made, asked = engine(url, transfer=transfer), wanted(temperature=0.8, top_k=20, repetition_penalty=1.2)
    for update in range(2):
        ours = answered(TransformersEngine(sampler_logprobs=True), policy, asked)
        theirs = answered(made, policy, asked)
        assert same_rows(ours, theirs) == [True] * len(LENGTHS)
        assert torch.equal(ours.ended, theirs.ended)
        torch.testing.assert_close(ours.sampler_logprobs, theirs.sampler_logprobs, atol=1e-5, rtol=1e-5)
        changed(policy, seed=update)
    made.close()
    made.close()


def test_nothing_of_the_weights_is_left_behind(url, policy, tmp_path) -> None:
    engine(url, folder=str(tmp_path)).sync(policy)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_arrive_are_caught(url, policy, served, monkeypatch) -> None:
    monkeypatch.setattr(served, "policy_weights_from", lambda folder: None)
    made = engine(url)
    with pytest.raises(RuntimeError, match=r"nats per token from the policy's \(`max_gap` 0.01\)"):
        made.sync(policy)
    with pytest.raises(RuntimeError, match="sync"):
        made.generate(wanted())


def test_a_cache_that_was_not_emptied_is_an_error(url, policy, served) -> None:
    served.behave = lambda path, *_: (200, {"success": False}) if path == "/reset_prefix_cache" else None
    with pytest.raises(RuntimeError, match="requests were still running"):
        engine(url).sync(policy)


def test_a_server_without_the_library_s_draws_is_refused(url, policy, served) -> None:
    served.exact = False
    with pytest.raises(RuntimeError, match=r"`draws` \(exact\) needs a server with the library's sampler"):
        engine(url).sync(policy)
    engine(url, draws="seed").sync(policy)


def test_a_server_that_takes_no_weights_is_told_how_to_be_started(url, policy, served) -> None:
    served.behave = lambda path, *_: (404, {"detail": "Not Found"}) if path == "/collective_rpc" else None
    with pytest.raises(RuntimeError, match=r"HTTP 404: .*Not Found.* start it with VLLM_SERVER_DEV_MODE=1") as error:
        engine(url).sync(policy)
    assert "\n" not in str(error.value)


def test_seeds_are_a_row_s_own_and_nothing_is_left_to_the_server(url, policy, served) -> None:
    made, asked = engine(url, draws="seed"), wanted(temperature=0.7, top_p=0.9, top_k=5, min_response_length=3)
    made.sync(policy)
    served.asked.clear()
    made.generate(asked)
    by_prompt = {tuple(payload["prompt"]): payload for _, payload in served.asked}
    ids = [p[m].tolist() for p, m in zip(asked.prompts.prompt_ids, asked.prompts.prompt_mask, strict=True)]
    for row, prompt in enumerate(ids):
        payload = by_prompt[tuple(prompt)]
        assert payload["seed"] == int(asked.uniforms[row, 0].item() * 2**53)
        sampling = {name: payload[name] for name in ("temperature", "top_p", "top_k", "min_tokens", "min_p")}
        assert sampling == {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_tokens": 2, "min_p": 0.0}
        assert payload["ignore_eos"]
        assert payload["stop_token_ids"] == list(asked.eos_token_ids)
    with pytest.raises(ValueError, match=r"`sampling.penalize_prompt` \(False\) must be True"):
        made.generate(wanted(repetition_penalty=1.2))


def test_a_row_beyond_the_server_s_length_is_refused(url, policy) -> None:
    made = engine(url)
    made.sync(policy)
    with pytest.raises(ValueError, match=r"`max_length` \(64\) must be at least .* \(66\)"):
        made.generate(request(prompts_of([60]), SamplingConfig(max_response_length=6)))
    with pytest.raises(ValueError, match=r"`max_length` \(64\) must be at least .* \(80\)"):
        made.generate(replace(wanted(), longest_row=80))


def test_a_response_that_the_server_ended_is_refused(url, policy, served) -> None:
    made = engine(url)
    made.sync(policy)
    cut = {"choices": [{"token_ids": [3], "logprobs": {"token_logprobs": [-1.0]}}]}
    served.behave = lambda path, payload, _: (200, cut) if path == "/v1/completions" else None
    with pytest.raises(ValueError, match="ended the response after prompt 0 by itself"):
        made.generate(wanted())


def test_failures_are_tried_again(url, policy, served) -> None:
    served.behave = lambda path, payload, count: (503, {}) if count < 2 else None
    ours, theirs = answered(TransformersEngine(), policy, wanted()), answered(engine(url), policy, wanted())
    assert all(same_rows(ours, theirs))
    made = engine(url, retries=1)
    served.asked.clear()
    with pytest.raises(RuntimeError, match=r"/collective_rpc failed 2 times, last with HTTP 503"):
        made.sync(policy)


def test_a_hanging_server_ends_the_run_in_time(url, policy, served) -> None:
    served.behave = lambda *_: time.sleep(1.0)
    with pytest.raises(RuntimeError, match=r"failed 1 times, last with no reply within 0.2 s"):
        engine(url, timeout=0.2, retries=0).sync(policy)


def test_no_server_is_named(policy) -> None:
    with pytest.raises(RuntimeError, match=r"http://127.0.0.1:9/collective_rpc failed 3 times, last with Connection"):
        engine("http://127.0.0.1:9").sync(policy)


def test_the_token_is_sent_and_is_nowhere_else(url, policy, served, monkeypatch) -> None:
    made = engine(url, token_env="VLLM_KEY")
    with pytest.raises(ValueError, match="`token_env`: the environment variable VLLM_KEY is not set"):
        made.setup(tokenizer=None, device=torch.device("cpu"))
    monkeypatch.setenv("VLLM_KEY", TOKEN)
    made.setup(tokenizer=None, device=torch.device("cpu"))
    made.sync(policy)
    assert {headers["Authorization"] for headers in served.headers} == {f"Bearer {TOKEN}"}
    served.behave = lambda *_: (401, {"error": f"not {TOKEN}"})
    with pytest.raises(RuntimeError, match="HTTP 401") as error:
        made.sync(policy)
    assert TOKEN not in str(error.value)
    assert TOKEN not in repr(vars(made)) + repr(vars(made.client))


def test_it_takes_no_memory_of_the_trainer_s() -> None:
    limits = VLLMServerEngine("http://127.0.0.1").limits("cuda")
    assert limits.cache_bytes == 0
    assert limits.copy_dtype is None


def test_random_states_are_left_alone(url, policy) -> None:
    made = engine(url)
    state = torch.get_rng_state()
    answered(made, policy, wanted())
    assert torch.equal(torch.get_rng_state(), state)
