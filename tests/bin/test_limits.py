"""What bin/bench calls useful arithmetic, against PyTorch's own count of what a model computes."""

import pytest
import torch
from benchmarks import limits
from benchmarks.limits import Shape
from benchmarks.shapes import PRESETS, llama_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

PRESET = "1m"
LENGTH = 24


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_config(llama_config(PRESET, positions=64, layers=3), attn_implementation="eager")


def counted(run) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def rectangle(shape: Shape, rows: int) -> float:
    """A pass that reads every position, attention on both sides of the diagonal, as eager attention computes it."""
    tokens, pairs = rows * LENGTH, rows * LENGTH**2
    return shape.trunk(computed=tokens, read=tokens, pairs=pairs, read_pairs=pairs) + shape.head(tokens)


def test_a_forward_pass_is_counted_as_pytorch_counts_it(model):
    ids = torch.ones(2, LENGTH, dtype=torch.long)
    with torch.no_grad():
        found = counted(lambda: model(input_ids=ids))
    assert found == rectangle(Shape.of(PRESETS[PRESET], layers=3), rows=2)


def test_a_backward_pass_is_twice_the_forward(model):
    ids = torch.ones(2, LENGTH, dtype=torch.long)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()  # else the first layer's input has none
    found = counted(lambda: model(inputs_embeds=embedded).logits.sum().backward())
    assert found == (1 + limits.BACKWARD) * rectangle(Shape.of(PRESETS[PRESET], layers=3), rows=2)


def test_what_nobody_reads_is_not_useful():
    shape = Shape.of(PRESETS[PRESET])
    whole = shape.trunk(computed=10, read=10, pairs=55, read_pairs=55)
    last = shape.trunk(computed=10, read=1, pairs=55, read_pairs=10)
    per_token = 2 * (2 * shape.hidden**2 + 3 * shape.hidden * shape.intermediate)
    assert whole - last == 9 * per_token + 45 * 4 * shape.hidden


def test_phases_of_an_iteration():
    """One prompt token and one response token: one token is computed and read in each model but the reward's."""
    shape = Shape.of(PRESETS[PRESET])
    one = shape.trunk(computed=1, read=1, pairs=1, read_pairs=1)
    two = shape.trunk(computed=2, read=1, pairs=3, read_pairs=2)
    found = limits.ppo_flops(shape, [(1, 1)], ppo_epochs=2)
    assert found["rollout"] == one + shape.head(1)
    assert found["score"] == 2 * (one + shape.head(1)) + one + two
    assert found["update"] == 2 * 3 * (2 * one + shape.head(1))


def test_a_common_prefix_counts_once():
    shape = Shape.of(PRESETS[PRESET])
    shared = limits.rm_flops(shape, [(10, 5, 5)])
    apart = limits.rm_flops(shape, [(0, 15, 15)])
    assert shared == 3 * shape.trunk(computed=20, pairs=55 + 2 * (120 - 55), read=2, read_pairs=30)
    assert apart == 3 * shape.trunk(computed=30, pairs=240, read=2, read_pairs=30)


def test_decoding_reads_the_weights_once_a_step_and_keys_and_values_once_a_token():
    shape = Shape(hidden=4, layers=1, intermediate=8, vocabulary=16)
    weights = 4 * 16 + 3 * 4 * 8 + 4 * 16
    assert limits.decode_bytes(shape, [(3, 3), (3, 2)], size=4) == 4 * (2 * weights + (4 + 5 + 4) * 2 * 4)


def test_the_machine_is_measured(monkeypatch):
    monkeypatch.setitem(limits.SIZE, "cpu", 64)
    monkeypatch.setitem(limits.COPIED_MIB, "cpu", 1)
    monkeypatch.setattr(limits, "SECONDS", 0.01)
    found = limits.machine("cpu", torch.float32)
    assert found["product_gflops"] > 0
    assert found["copy_gbs"] > 0
    assert limits.share(5e8, 2.0, {"product_gflops": 1.0}) == 0.25
