"""The optimizer that all modules share."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lit_rlhf.config import ModelConfig, OptimizerConfig, ScheduleConfig
from lit_rlhf.modules.base import BaseModule


class _Toy(BaseModule):
    def __init__(self) -> None:
        super().__init__(model=ModelConfig(), optimizer=OptimizerConfig(), schedule=ScheduleConfig())
        self.layer = nn.Linear(3, 3)

    def load_models(self) -> None:
        raise NotImplementedError

    def parameter_groups(self) -> dict[str, Any]:
        return {"layer": (list(self.layer.parameters()), 1e-2)}

    def sources(self) -> dict[str, str]:
        return {}

    def export(self, path: Any) -> None:
        raise NotImplementedError


def _optimizer(device: str, **plugin: Any) -> torch.optim.Optimizer:
    module = _Toy().to(device)
    module._trainer = SimpleNamespace(
        strategy=None, precision_plugin=SimpleNamespace(**plugin), max_epochs=-1, max_steps=10
    )
    optimizer: torch.optim.Optimizer = module.configure_optimizers()["optimizer"]
    return optimizer


@pytest.mark.parametrize(
    ("device", "plugin", "fused"),
    [("cpu", {}, True), ("cpu", {"scaler": None}, True), ("cpu", {"scaler": object()}, False), ("meta", {}, False)],
)
def test_fused_unless_the_loss_is_scaled_or_the_device_has_none(device, plugin, fused):
    assert _optimizer(device, **plugin).defaults["fused"] is fused


def test_fused_is_the_plain_step():
    weights = []
    for plugin in ({}, {"scaler": object()}):
        torch.manual_seed(0)
        optimizer = _optimizer("cpu", **plugin)
        parameters = optimizer.param_groups[0]["params"]
        for step in range(3):
            for parameter in parameters:
                parameter.grad = torch.sin(parameter.detach() * 5 + step)
            optimizer.step()
        weights.append([p.detach() for p in parameters])
    for fused, plain in zip(*weights, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-7)
