"""Liger's kernels give the numbers and gradients of the plain layers, and PPO with them keeps what it promises."""

from __future__ import annotations

import importlib

import pytest
import torch

from lit_rlhf.config import AdapterConfig
from lit_rlhf.models.liger import use_liger
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.rollout.sampling import SamplingConfig
from tests.liger.conftest import DEVICE
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer

pytestmark = pytest.mark.cuda
ARCHITECTURES = ("gemma", "gemma2", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")


@pytest.fixture(autouse=True)
def _plain_rotary_embedding():
    """That of Llama's source as transformers wrote it, whatever a test before has put there."""
    source = importlib.import_module("transformers.models.llama.modeling_llama")
    source.apply_rotary_pos_emb = getattr(source.apply_rotary_pos_emb, "__wrapped__", source.apply_rotary_pos_emb)


def _results(model):
    """Logits, and the gradients of their sum weighed at random."""
    ids = torch.randint(4, 60, (3, 9), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits
    probe = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    (logits.float() * probe).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _owners(model):
    """Which class's ``forward`` each part of a layer runs."""
    return {type(part).__name__: part.forward.__qualname__ for part in model.base_model.layers[0].modules()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_numbers_and_gradients_are_those_of_the_plain_layers(causal_folder, architecture):
    model = load_causal_lm(causal_folder(architecture)).to(DEVICE)
    (plain, plain_gradients), before = _results(model), _owners(model)
    use_liger([model], DEVICE)
    fused, gradients = _results(model)
    assert sum(was != now for was, now in zip(before.values(), _owners(model).values(), strict=True)) >= 2
    assert not torch.equal(fused, plain)  # other kernels, other rounding: they did run
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        largest = float(plain_gradients[name].abs().max())
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-4, atol=max(1e-5, 1e-5 * largest))


def test_the_source_of_a_class_that_is_derived_from_is_kept_too(causal_folder):
    source = importlib.import_module("transformers.models.llama.modeling_llama")

    class Own(source.LlamaForCausalLM):
        pass

    classes = (source.LlamaRMSNorm, source.LlamaMLP)
    use_liger([Own.from_pretrained(causal_folder())], DEVICE)
    assert (source.LlamaRMSNorm, source.LlamaMLP) == classes


def test_models_to_come_are_plain(causal_folder):
    folder = causal_folder()
    source = importlib.import_module("transformers.models.llama.modeling_llama")
    classes = {name: kind for name, kind in vars(source).items() if isinstance(kind, type)}
    use_liger([load_causal_lm(folder)], DEVICE)
    rotary = source.apply_rotary_pos_emb
    use_liger([load_causal_lm(folder)], DEVICE)
    assert source.apply_rotary_pos_emb is rotary  # not one around the other
    assert {name: kind for name, kind in vars(source).items() if isinstance(kind, type)} == classes


def test_what_it_does_not_know_is_refused(causal_folder):
    with pytest.raises(ValueError, match=r"no kernels for 'gpt2', only for .*llama"):
        use_liger([load_causal_lm(causal_folder("gpt2"))], DEVICE)


def _trained(world, folder, **model):
    torch.manual_seed(0)  # an adapter begins at random
    module = make_ppo(world, model=model, sampling=SamplingConfig(max_response_length=4))
    recorder = Recorder()
    few = make_data(
        world, rollout_batch_size=4, minibatch_size=2
    )  # the interpreter takes a millisecond a row and kernel
    make_trainer(folder, accelerator=DEVICE, max_steps=3, limit_val_batches=0, callbacks=[recorder]).fit(module, few)
    return module, recorder


@pytest.mark.parametrize("adapter", [None, AdapterConfig(r=2)], ids=["whole", "adapter"])
def test_ppo_starts_at_ratio_one_and_no_kl_and_ends_where_plain_ppo_does(world, tmp_path, adapter):
    if adapter is not None:
        pytest.importorskip("peft")
    plain, _ = _trained(world, tmp_path / "plain", adapter=adapter)  # first: a rotary embedding is the process's
    fused, seen = _trained(world, tmp_path / "fused", liger_kernel=True, adapter=adapter)
    for model in (fused.policy, fused.critic, fused.reference.model):
        assert any("Liger" in part.forward.__qualname__ for part in model.modules())
    assert seen.metrics[0]["update/ratio_drift"] == 0.0
    assert seen.metrics[0]["rollout/kl"] == 0.0
    state = plain.state_dict()
    for name, value in fused.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-2, atol=1e-4)
