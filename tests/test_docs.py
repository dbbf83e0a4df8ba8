"""Every Python example of docs/extending.md runs for two iterations, and what it overrides is called."""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import CriticConfig, LossConfig, PTXConfig
from lit_rlhf.ppo.estimators import AdvantageEstimator, GroupNormalized
from lit_rlhf.ppo.kl_controller import KLController
from lit_rlhf.ppo.losses import PolicyLoss
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rollout.engine import RolloutEngine
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
HOOKS = (
    *("collect", "generate", "score_rollout", "shape_rewards", "estimate_advantages"),
    *("policy_token_loss", "critic_token_loss", "entropy_token_loss", "ptx_token_loss"),
)
MEASURED = {f"update/{name}" for name in ("ratio", "approx_kl", "ratio_drift", "clip_fraction", "grad_norm")}
MEASURED |= {"loss/policy", "rollout/kl", "rollout/score"}
RESUME_ONLY = {"__init__", "load_state_dict", "state_dict"}


def defined_in(block: str) -> type:
    """The one class of an example."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block, str(PAGE), "exec"), names)
    (found,) = [x for x in names.values() if inspect.isclass(x) and x.__module__ == "example"]
    return found


def counted(kind: type, calls: Counter[str]) -> None:
    """Make every method of ``kind`` itself count its calls."""
    for name, method in list(vars(kind).items()):
        if inspect.isfunction(method):

            def call(self, *args, _name=name, _method=method, **kwargs):
                calls[_name] += 1
                return _method(self, *args, **kwargs)

            call.__signature__ = inspect.signature(method)
            setattr(kind, name, call)


def plugged_in(kind: type, world: Path) -> tuple[PPOModule, list[L.Callback]]:
    if issubclass(kind, PPOModule):
        return make_ppo(world, kind, loss=LossConfig(entropy_coef=0.01, target_kl=1e9)), []
    if issubclass(kind, L.Callback):
        return make_ppo(world), [kind()]
    if issubclass(kind, PolicyLoss):
        average = LossConfig(average="responses", target_kl=1e9)
        return make_ppo(world, policy_loss=kind(), estimator=GroupNormalized(4), loss=average), []
    if issubclass(kind, RolloutEngine):
        return make_ppo(world, engine=kind()), []
    if issubclass(kind, Reward):
        return make_ppo(world, reward=kind(), critic=CriticConfig(init="policy")), []
    if issubclass(kind, AdvantageEstimator):
        return make_ppo(world, estimator=kind()), []
    assert issubclass(kind, KLController)
    return make_ppo(world, kl_controller=kind()), []


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.findall(r"^class (\w+)", block, re.MULTILINE)[0])
def test_example_runs(block: str, world: Path, tmp_path: Path) -> None:
    kind, calls, recorder = defined_in(block), Counter[str](), Recorder()
    counted(kind, calls)
    module, callbacks = plugged_in(kind, world)
    trainer = make_trainer(tmp_path, callbacks=[recorder, *callbacks], limit_val_batches=0)
    ptx = PTXConfig(files=[str(world / "texts.jsonl")])
    trainer.fit(module, make_data(world, ptx=ptx, ppo_epochs=2, keep_groups=issubclass(kind, PolicyLoss)))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert trainer.global_step == 8
    assert all(math.isfinite(v) for v in recorder.metrics[-1].values()), recorder.metrics[-1]
    assert recorder.metrics[-1].keys() >= MEASURED, "whatever a loss does, the module measures"
    # Before the first update every ratio is 1; the metric is that of the whole last iteration's first update.
    assert recorder.metrics[-1]["update/ratio_drift"] == 0.0
    moves = not issubclass(kind, RolloutEngine)  # greedy responses of so small a model may give no advantage
    assert not moves or recorder.metrics[-1]["update/approx_kl"] > 0.0
    own = {name for name, method in vars(kind).items() if inspect.isfunction(method)}
    assert own - RESUME_ONLY <= calls.keys()
    assert calls["state_dict"] or "state_dict" not in own


def test_every_hook_and_seam_has_an_example() -> None:
    kinds = [defined_in(block) for block in BLOCKS]
    overridden = {name for kind in kinds if issubclass(kind, PPOModule) for name in vars(kind)}
    assert [hook for hook in HOOKS if hook not in overridden] == []
    for seam in (Reward, AdvantageEstimator, KLController, PolicyLoss, RolloutEngine, L.Callback):
        assert any(issubclass(kind, seam) for kind in kinds), seam


def test_every_hook_has_its_heading() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [hook for hook in HOOKS if f"### `{hook}`" not in text] == []
