"""Compiled decode steps: how many graphs there are, and what is said when there would be too many."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounterWithBackend

from lit_rlhf.rollout import compiled as compiled_module
from lit_rlhf.rollout.engine import GenerationRequest
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from tests.rollout.test_transformers_engine import (
    ENDS,
    PAD,
    STEPS,
    VOCABULARY,
    batch_of,
    gemma2,
    gpt2,
    llama,
    some_uniforms,
)


@pytest.fixture
def counter(monkeypatch):
    """Graphs that are compiled; they run as they are."""
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("eager")
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, *, mode, **options: real(f, backend=backend, **options))
    yield backend
    torch._dynamo.reset()


def request_of(rows: int, width: int, *, longest_row: int = 0) -> GenerationRequest:
    g = torch.Generator().manual_seed(1000 * rows + width)
    prompts = torch.randint(3, VOCABULARY, (rows, width), generator=g).tolist()
    return GenerationRequest(
        prompts=batch_of(prompts),
        sampling=SamplingConfig(max_response_length=STEPS),
        eos_token_ids=ENDS,
        pad_token_id=PAD,
        uniforms=some_uniforms(rows),
        longest_row=longest_row,
    )


def answers(engine: TransformersEngine, model, request: GenerationRequest) -> torch.Tensor:
    """One series: what a rollout, a validation or a prediction is to the engine."""
    engine.sync(model)
    out = engine.generate(request).input_ids
    engine.rest()
    return out


@pytest.mark.parametrize("make_model", [llama, gpt2, gemma2], ids=lambda f: f.__name__)
def test_one_graph_for_each_number_of_rows_whatever_the_prompts(make_model, counter):
    """Ten prompt widths, three sizes of batch, training and validation: at most the numbers 8, 16, 32 of rows."""
    model, engine, plain = make_model(), TransformersEngine(static_cache=True, compile=True), TransformersEngine()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for width in range(1, 100, 10):
            for rows, evaluating in ((5, True), (30, False), (11, False)):
                request = request_of(rows, width, longest_row=100 + STEPS)
                with torch.inference_mode(evaluating):
                    assert torch.equal(answers(engine, model, request), answers(plain, model, request))
    assert 1 <= counter.frame_count <= 3


def test_without_a_known_longest_row_columns_grow_in_steps(counter):
    model, engine = llama(), TransformersEngine(static_cache=True, compile=True)
    for width in (5, 20, 40, 50, 60, 90, 110, 30):
        answers(engine, model, request_of(8, width))
    assert engine._columns == 256
    assert counter.frame_count == 2


def test_the_graph_repeats_no_key_or_value(counter):
    """Inside `torch.compile` transformers of any release repeats them for every query head, a copy of the cache."""
    model, engine = llama(), TransformersEngine(static_cache=True, compile=True)
    answers(engine, model, request_of(8, 90))
    config = model.config
    repeated = (8, config.num_attention_heads, engine._columns, config.hidden_size // config.num_attention_heads)
    shapes = [
        tuple(node.meta["example_value"].shape)
        for graph in counter.graphs
        for node in graph.graph.nodes
        if isinstance(node.meta.get("example_value"), torch.Tensor)
    ]
    assert (8, config.num_key_value_heads, *repeated[2:]) in shapes, "the cache itself must be seen"
    assert repeated not in shapes


def test_buffers_stay_where_they_are_until_the_engine_rests(counter):
    """CUDA graphs know them by their address."""
    model, engine = llama(), TransformersEngine(static_cache=True, compile=True)
    engine.sync(model)
    engine.generate(request_of(20, 9))
    assert engine._cache is not None
    first = engine._cache
    engine.generate(request_of(20, 30))
    engine.generate(request_of(3, 3))
    assert engine._cache is first
    for layer in first.layers:
        assert all(tensor._dynamo_static_input_type for tensor in layer.shown)
    assert first.window.position._dynamo_static_input_type
    engine.rest()
    assert engine._cache is None


def test_giving_up_is_said_once_and_changes_no_token(counter, monkeypatch):
    monkeypatch.setattr(compiled_module, "MOST_GRAPHS", 1)
    model, engine, plain = llama(), TransformersEngine(static_cache=True, compile=True), TransformersEngine()
    request = request_of(30, 9)
    with pytest.warns(UserWarning, match=r"`compile` \(True\): 1 graphs .* steps run uncompiled"):
        first = answers(engine, model, request)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        second = answers(engine, model, request)
    for given in (first, second):
        assert torch.equal(given, answers(plain, model, request))
    assert counter.frame_count == 1


def test_another_model_is_compiled_anew(counter):
    engine = TransformersEngine(static_cache=True, compile=True)
    step = functools.partial(engine._step_function)
    one, other = llama(), llama()
    assert step(one) is step(one)
    assert step(one) is not step(other)
