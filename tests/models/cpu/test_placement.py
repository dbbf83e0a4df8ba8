"""Where the CPU's parts are put in: when a model meets its device, and only if that is a CPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lit_rlhf.models.cpu import attention_dtype, release_freed_memory
from lit_rlhf.models.cpu.kernels import SDPA_NAME, CpuLinear
from lit_rlhf.models.frozen import FrozenModel
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.modules.base import BaseModule
from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer


def kinds(model: nn.Module) -> set[type]:
    """The classes of its linear layers, heads of the library's own left out."""
    return {type(m) for m in model.modules() if type(m) in (nn.Linear, CpuLinear)}


def test_loading_leaves_a_model_as_transformers_made_it(world):
    model = load_causal_lm(world / "policy")
    assert kinds(model) == {nn.Linear}
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("run", ["fit", "validate", "test", "predict"])
def test_every_run_on_a_cpu_has_its_kernels(world, tmp_path, run):
    module = make_ppo(world)
    files = {"predict": str(world / "prompts.jsonl"), "test": str(world / "prompts.jsonl")}
    getattr(make_trainer(tmp_path, max_epochs=1), run)(module, make_data(world, **files))
    frozen = [] if run == "predict" else [module.reward._model.model]
    frozen += [module.reference.model] if run == "fit" else []
    trained = [module.policy, module.critic] if run == "fit" else [module.policy]
    for model in [*trained, *frozen]:
        assert kinds(model) == {CpuLinear}
        assert model.config._attn_implementation == SDPA_NAME


@pytest.mark.parametrize("hook", ["on_fit_start", "on_validation_start", "on_test_start", "on_predict_start"])
def test_a_run_on_another_device_has_none_of_it(world, monkeypatch, hook):
    module = make_ppo(world)
    module.configure_model()
    getattr(module, hook)()
    assert kinds(module) == {CpuLinear}
    monkeypatch.setattr(BaseModule, "device", torch.device("cuda", 0))
    getattr(module, hook)()
    assert kinds(module) == {nn.Linear}
    assert module.policy.config._attn_implementation == module.critic.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("placement", ["device", "cpu"])
def test_a_frozen_model_is_tuned_for_the_device_it_is_used_on(world, monkeypatch, placement):
    # A copy in other memory stands for an accelerator.
    monkeypatch.setattr("lit_rlhf.models.frozen._brought", lambda tensor, device: tensor.clone())
    frozen = FrozenModel(load_causal_lm(world / "policy"), placement=placement)
    assert kinds(frozen.to("cpu").model) == {nn.Linear}
    with frozen.on("cpu"):
        assert kinds(frozen.model) == {CpuLinear}
    with frozen.on("meta"):
        assert kinds(frozen.model) == {nn.Linear}


def test_keys_and_values_are_kept_in_the_dtype_that_attention_runs_in():
    low, meta = torch.zeros(1, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.bfloat16, device="meta")
    assert attention_dtype(low) == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention_dtype(low) == torch.float32
        assert attention_dtype(meta) == torch.bfloat16


@pytest.mark.parametrize(
    ("device", "tokens", "given"), [("cpu", 768, True), ("cpu", 769, False), ("cuda", 64, False), ("meta", 64, False)]
)
def test_memory_goes_back_on_a_cpu_after_small_passes(monkeypatch, device, tokens, given):
    monkeypatch.setattr("lit_rlhf.models.cpu.memory.trim", lambda: True)
    assert release_freed_memory(device, pass_tokens=tokens) == given
