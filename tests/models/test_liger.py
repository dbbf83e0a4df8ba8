"""What `model.liger_kernel` does where its kernels cannot run; what they compute is in tests/liger."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from lit_rlhf.models import liger
from lit_rlhf.models.loading.causal import load_causal_lm
from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def test_a_run_on_a_cpu_is_told_and_goes_on_with_the_plain_layers(world, tmp_path):
    module = make_ppo(world, model={"liger_kernel": True})
    with pytest.warns(UserWarning, match=r"`model.liger_kernel`: its kernels need a GPU.*'cpu'"):
        make_trainer(tmp_path, max_epochs=1).fit(module, make_data(world))
    for model in (module.policy, module.critic, module.reference.model):
        assert not any("forward" in vars(part) for part in model.modules())


def test_a_missing_package_is_named_with_the_extra(causal_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    with pytest.raises(ImportError, match=r"`model.liger_kernel` needs liger-kernel: pip install 'lit-rlhf\[liger\]'"):
        liger.use_liger([load_causal_lm(causal_folder())], "cuda")


def test_what_is_no_transformers_model_is_refused(monkeypatch):
    package, patch = ModuleType("liger_kernel.transformers"), ModuleType("liger_kernel.transformers.monkey_patch")
    package._apply_liger_kernel_to_instance, patch.MODEL_TYPE_TO_APPLY_LIGER_FN = None, {}
    for module in (package, patch):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ValueError, match="no model of transformers"):
        liger.use_liger([torch.nn.Linear(2, 2)], "cuda")


def test_of_a_source_functions_stay_by_device_and_classes_are_put_back():
    source = ModuleType("source")
    source.turn, source.Norm, source.number = lambda x: x + 1, torch.nn.LayerNorm, 3
    plain = source.turn
    with liger._kept(source):
        source.turn, source.Norm = lambda x: x + 2, torch.nn.RMSNorm
    assert (source.Norm, source.number) == (torch.nn.LayerNorm, 3)
    assert source.turn(torch.zeros(())) == 1.0
    assert source.turn(torch.zeros((), device="meta")).is_meta
    turn = source.turn
    assert turn.__wrapped__ is plain
    with liger._kept(source):
        source.turn = lambda x: x + 3
    assert source.turn is turn
