import weakref

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lit_rlhf.models.cpu import kernels as cpu_kernels
from lit_rlhf.models.cpu import tune
from lit_rlhf.models.cpu.kernels import SDPA_NAME, CpuLinear


@pytest.fixture(params=[False, True], ids=["plain fp32", "oneDNN"])
def onednn(request, monkeypatch):
    """Both choices of fp32 product; the oneDNN operator runs on any x86 CPU, it is only not always the faster one."""
    monkeypatch.setattr(cpu_kernels, "prefers_onednn", lambda: request.param)


@pytest.fixture
def undecided():
    """The choice of a product is made once in a process: once more here, and forgotten afterwards."""
    cpu_kernels.prefers_onednn.cache_clear()
    yield
    cpu_kernels.prefers_onednn.cache_clear()


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize(("torch_takes", "onednn"), [(2.2, True), (1.2, False), (0.7, False)])
def test_onednn_multiplies_where_it_is_clearly_faster(monkeypatch, torch_takes, onednn):
    monkeypatch.delenv(cpu_kernels.PRODUCTS, raising=False)
    monkeypatch.setattr(
        cpu_kernels, "_product_seconds", lambda product: 1.0 if product is cpu_kernels._product else torch_takes
    )
    assert cpu_kernels.prefers_onednn() is onednn


@pytest.mark.usefixtures("undecided")
def test_the_measurement_leaves_the_threads_as_they_were(monkeypatch):
    monkeypatch.delenv(cpu_kernels.PRODUCTS, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert cpu_kernels.prefers_onednn() in (True, False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_measurement_is_of_fp32_whatever_the_default(monkeypatch, default):
    kinds = set()
    monkeypatch.delenv(cpu_kernels.PRODUCTS, raising=False)
    monkeypatch.setattr(cpu_kernels, "_best_seconds", lambda _, x, w: kinds.update({x.dtype, w.dtype}) or 1.0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        cpu_kernels.prefers_onednn()
    finally:
        torch.set_default_dtype(before)
    assert kinds == {torch.float32}


@pytest.mark.usefixtures("undecided")
def test_the_environment_decides_instead(monkeypatch):
    monkeypatch.setattr(cpu_kernels, "_product_seconds", None)
    for said, wanted in (("onednn", True), ("torch", False)):
        cpu_kernels.prefers_onednn.cache_clear()
        monkeypatch.setenv(cpu_kernels.PRODUCTS, said)
        assert cpu_kernels.prefers_onednn() is wanted
    cpu_kernels.prefers_onednn.cache_clear()
    monkeypatch.setenv(cpu_kernels.PRODUCTS, "mkl")
    with pytest.raises(ValueError, match=r"`LIT_RLHF_CPU_PRODUCTS` \(mkl\) must be onednn or torch"):
        cpu_kernels.prefers_onednn()


def pair_of_layers(*, bias: bool) -> tuple[nn.Linear, CpuLinear]:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias)
    tuned = nn.Linear(24, 40, bias=bias)
    tuned.load_state_dict(plain.state_dict())
    tune(tuned_in := nn.Sequential(tuned), "cpu")
    return plain, tuned_in[0]


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24), (1, 24), (64, 24), (65, 24), (3, 64, 24), (5, 31, 24)])
def test_linear_equals_torch(bias, shape):
    plain, tuned = pair_of_layers(bias=bias)
    x = torch.randn(shape)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    weight = torch.randn(*shape[:-1], 40)
    outputs = [layer(i) for layer, i in zip((plain, tuned), inputs, strict=True)]
    for out in outputs:
        (out * weight).sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(tuned.weight.grad, plain.weight.grad)
    if bias:
        torch.testing.assert_close(tuned.bias.grad, plain.bias.grad)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("rows", [9, 130])
def test_same_bits_with_and_without_gradients(autocast, rows):
    """The first ratio of an iteration is exactly 1 only if scoring and update give the same bits."""
    _, tuned = pair_of_layers(bias=True)
    x = torch.randn(rows, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        with torch.no_grad():
            scored = tuned(x)
        assert torch.equal(scored, tuned(x))


def test_a_decode_loop_that_drops_rows_meets_few_shapes(monkeypatch):
    """oneDNN keeps a kernel for every shape; one row has its own, the others come in eights, with the same bits."""
    monkeypatch.setattr(cpu_kernels, "prefers_onednn", lambda: True)
    multiply, shapes = cpu_kernels._product, set()

    def watched(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        shapes.add(len(x))
        return multiply(x, weight)

    monkeypatch.setattr(cpu_kernels, "_product", watched)
    _, tuned = pair_of_layers(bias=False)
    with torch.no_grad():
        for rows in range(1, 65):
            x = torch.randn(rows, 24)
            assert torch.equal(tuned(x), multiply(x, tuned.weight))
    assert shapes == {1, 8, 16, 24, 32, 40, 48, 56, 64}


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_layers_that_read_one_input_share_its_rows(monkeypatch, context):
    monkeypatch.setattr(cpu_kernels, "prefers_onednn", lambda: True)
    made, make = [], cpu_kernels._rows
    monkeypatch.setattr(cpu_kernels, "_rows", lambda *given: made.append(1) or make(*given))
    (plain, query), (_, key) = pair_of_layers(bias=False), pair_of_layers(bias=False)
    with context():
        x = torch.randn(9, 24)
        assert torch.equal(query(x), key(x))
        assert len(made) == (2 if context is torch.inference_mode else 1)
        x.mul_(2)
        torch.testing.assert_close(query(x), plain(x))
        torch.testing.assert_close(query(x.clone()), plain(x))


@pytest.mark.parametrize("rows", [9, 64])
def test_the_rows_made_last_keep_no_input_alive(monkeypatch, rows):
    monkeypatch.setattr(cpu_kernels, "prefers_onednn", lambda: True)
    _, tuned = pair_of_layers(bias=False)
    x = torch.randn(rows, 24)
    seen = weakref.ref(x)
    tuned(x)
    del x
    assert seen() is None
    assert cpu_kernels._last_rows.rows is None


@pytest.mark.parametrize("rows", [9, 130])
def test_autocast_gives_what_the_plain_layer_gives(rows):
    plain, tuned = pair_of_layers(bias=True)
    x = torch.randn(rows, 24, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, reference = tuned(x), plain(x)
    assert out.dtype == reference.dtype == torch.bfloat16
    torch.testing.assert_close(out, reference, atol=2e-2, rtol=2e-2)
    out.sum().backward()
    assert tuned.weight.grad.dtype == x.grad.dtype == torch.float32
    torch.testing.assert_close(x.grad, plain.weight.sum(0).expand_as(x), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(tuned.weight.grad, x.detach().sum(0).expand(40, -1), atol=0.1, rtol=2e-2)


def test_other_dtypes_take_the_plain_layer():
    plain, tuned = pair_of_layers(bias=True)
    x = torch.randn(5, 24)
    assert torch.equal(tuned.double()(x.double()), plain.double()(x.double()))
    assert tuned.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def layers_of(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(type(module) is kind for module in model.modules())


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("padded", [False, True])
def test_model_gives_the_same_logits(padded):
    model, tuned = small_llama(), small_llama()
    tune(tuned, "cpu")
    assert layers_of(tuned, CpuLinear) == 2 * 7 + 1
    assert tuned.config._attn_implementation == SDPA_NAME
    ids = torch.randint(64, (3, 11))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :4] = 0
    expected, got = (m(input_ids=ids, attention_mask=mask).logits for m in (model, tuned))
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = tuned(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(low[mask.bool()].float(), expected[mask.bool()], atol=0.1, rtol=0.1)


def test_checkpoint_of_a_tuned_model_is_that_of_the_plain_one(tmp_path):
    model, tuned = small_llama(), small_llama()
    tune(tuned, "cpu")
    assert list(tuned.state_dict()) == list(model.state_dict())
    tuned.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config._attn_implementation == "sdpa"
    ids = torch.randint(64, (2, 5))
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


def test_subclasses_and_other_attention_are_left_alone():
    class Adapter(nn.Linear):
        pass

    model = small_llama()
    model.set_attn_implementation("eager")
    model.model.layers[0].mlp.up_proj = Adapter(32, 48, bias=False)
    tune(model, "cpu")
    assert layers_of(model, CpuLinear) == 2 * 7
    assert type(model.model.layers[0].mlp.up_proj) is Adapter
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("first", [(), ("cpu",), ("cpu", "cpu")], ids=["never tuned", "tuned", "tuned twice"])
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps", torch.device("meta")])
def test_for_another_device_nothing_of_it_is_left(first, device):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = small_llama(), nn.Linear(4, 1)

    model, plain = Wrapped(), Wrapped()
    weights = [id(parameter) for parameter in model.parameters()]
    for place in (*first, device, device):
        tune(model, place)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert model.inner.config._attn_implementation == "sdpa"
    assert [id(parameter) for parameter in model.parameters()] == weights


def test_hooks_and_holders_of_a_layer_keep_it():
    model = small_llama()
    head, seen = model.get_output_embeddings(), []
    head.register_forward_hook(lambda *_: seen.append(1))
    tune(model, "cpu")
    model(input_ids=torch.randint(64, (1, 3)))
    assert model.get_output_embeddings() is head
    assert type(head) is CpuLinear
    assert seen == [1]
