"""The invariants of docs/architecture.md on a GPU, in fp32 and bf16-mixed. (4 needs two devices; see test_zero.py.)"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_rlhf.functional.advantages import generalized_advantage_estimate
from lit_rlhf.functional.kl import k1, k3
from lit_rlhf.functional.losses import clipped_policy_loss, normalized_sum, value_loss
from lit_rlhf.functional.masking import masked_whiten
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import PPOOptimizerConfig, PTXConfig
from lit_rlhf.types import Experience
from tests.cuda.conftest import PRECISIONS, compute_in
from tests.modules.test_invariants import LOSSES, loss_and_gradients, pad_prompts, with_garbage
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer, weights

pytestmark = pytest.mark.cuda
BEYOND_ROUNDING = {"32-true": {"rtol": 1e-4, "atol": 1e-5}, "bf16-mixed": {"rtol": 0.1, "atol": 0.02}}


def fit(
    world: Path, root: Path, accelerator: str, precision: str, *, ckpt_path: str | None = None, **options: Any
) -> tuple[PPOModule, Recorder]:
    module, recorder = make_ppo(world, **LOSSES, optimizer=PPOOptimizerConfig(lr=1e-2, critic_lr=1e-2)), Recorder()
    data = make_data(world, ptx=PTXConfig(files=[str(world / "texts.jsonl")], max_length=16), **options.pop("data", {}))
    callbacks = [recorder, *options.pop("callbacks", [])]
    trainer = make_trainer(
        root, accelerator=accelerator, precision=precision, limit_val_batches=0, callbacks=callbacks, **options
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, recorder


@pytest.fixture(scope="module", params=PRECISIONS)
def run(
    request: pytest.FixtureRequest,
    world: Path,
    tmp_path_factory: pytest.TempPathFactory,
    accelerator: str,
    device: torch.device,
) -> tuple[str, PPOModule, Recorder]:
    """Two iterations; the module is back on the device, which Lightning takes it from at the end of a fit."""
    module, recorder = fit(world, tmp_path_factory.mktemp("run"), accelerator, request.param)
    return request.param, module.to(device).eval(), recorder


def test_1_first_ratios_are_exactly_one(run: tuple[str, PPOModule, Recorder]) -> None:
    _, _, recorder = run
    assert [row["update/ratio_drift"] for row in recorder.metrics[::2]] == [0.0, 0.0]


def test_2_padding_order_and_micro_batches_change_nothing_beyond_rounding(
    run: tuple[str, PPOModule, Recorder], device: torch.device
) -> None:
    precision, module, recorder = run
    experience: Experience = recorder.experiences[-1].to(device)
    order = torch.randperm(len(experience), generator=torch.Generator().manual_seed(1))
    with compute_in(precision, device):
        loss, gradients = loss_and_gradients(module, experience)
        for parts, other in ((1, experience.rows(order)), (4, pad_prompts(experience.rows(order), 3))):
            found, others = loss_and_gradients(module, other, parts=parts)
            torch.testing.assert_close(found, loss, **BEYOND_ROUNDING[precision])
            for a, b in zip(others, gradients, strict=True):
                scale = float(b.abs().max().clamp_min(1e-6))
                torch.testing.assert_close(a / scale, b / scale, **BEYOND_ROUNDING[precision])


def test_3_garbage_after_eos_changes_not_a_bit(run: tuple[str, PPOModule, Recorder], device: torch.device) -> None:
    precision, module, recorder = run
    experience: Experience = recorder.experiences[-1].to(device)
    with compute_in(precision, device):
        loss, gradients = loss_and_gradients(module, experience)
        found, others = loss_and_gradients(module, with_garbage(experience))
    assert torch.equal(found, loss)
    assert all(torch.equal(a, b) for a, b in zip(others, gradients, strict=True))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_5_a_resumed_run_is_the_run(world: Path, tmp_path: Path, accelerator: str, precision: str) -> None:
    """Step 3 is in the middle of the second iteration. Bit for bit, if the device's kernels are."""
    keep = ModelCheckpoint(dirpath=tmp_path / "ckpt", every_n_train_steps=3, save_top_k=-1)
    straight, _ = fit(world, tmp_path, accelerator, precision, callbacks=[keep], enable_checkpointing=True)
    again, _ = fit(world, tmp_path, accelerator, precision)
    (half,) = (tmp_path / "ckpt").glob("*step=3.ckpt")
    resumed, _ = fit(world, tmp_path, accelerator, precision, ckpt_path=str(half))
    wanted, repeated, found = (weights(module) for module in (straight, again, resumed))
    if all(torch.equal(repeated[name], wanted[name]) for name in wanted):
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-4)
    assert "policy.lm_head.weight" in wanted


def test_6_frozen_models_stay_what_was_loaded(world: Path, run: tuple[str, PPOModule, Recorder]) -> None:
    _, module, _ = run
    frozen = {
        "reference": (module.reference.model, load_causal_lm(str(world / "policy"))),
        "reward": (module.reward._model.model, load_scalar_model(str(world / "reward"), head="load")),
    }
    for name, (model, loaded) in frozen.items():
        assert not any(part.training for part in model.modules()), name
        for key, wanted in loaded.state_dict().items():
            assert torch.equal(model.state_dict()[key].cpu(), wanted), f"{name} {key}"
    assert all(key.startswith(("policy.", "critic.")) for key in module.state_dict())


def test_7_losses_and_advantages_term_by_term(device: torch.device) -> None:
    """Columns on the device against sums of Python floats."""
    generator = torch.Generator().manual_seed(0)
    shape, gamma, lam, clip = (5, 7), 0.99, 0.9, 0.2
    columns = [torch.randn(shape, generator=generator) for _ in range(5)]
    new, old, advantages, values, returns = (c.to(device) for c in columns)
    mask = torch.arange(7) < torch.tensor([7, 1, 4, 3, 6])[:, None]
    total = mask.sum().item()

    def summed(term: Any) -> float:
        rows = range(shape[0])
        return math.fsum(term(*(float(c[i, t]) for c in columns)) for i in rows for t in range(7) if mask[i, t]) / total

    def surrogate(n: float, o: float, a: float, *_: float) -> float:
        ratio = math.exp(n - o)
        return max(-ratio * a, -min(max(ratio, 1 - clip), 1 + clip) * a)

    kept = mask.to(device)
    loss, _ = clipped_policy_loss(new, old, advantages, clip_range=clip)
    assert float(normalized_sum(loss, kept, total)) == pytest.approx(summed(surrogate), rel=1e-5)
    error, _ = value_loss(values, values, returns, clip_range=None)
    assert float(normalized_sum(error, kept)) == pytest.approx(summed(lambda *x: 0.5 * (x[3] - x[4]) ** 2), rel=1e-5)
    assert float(normalized_sum(k1(new, old), kept)) == pytest.approx(summed(lambda n, o, *_: n - o), rel=1e-4)
    assert float(normalized_sum(k3(new, old), kept)) == pytest.approx(
        summed(lambda n, o, *_: math.exp(o - n) - 1 - (o - n)), rel=1e-5
    )
    white = masked_whiten(advantages, kept)
    assert float(white[kept].double().mean()) == pytest.approx(0, abs=1e-6)
    assert float(white[kept].double().std(correction=0)) == pytest.approx(1, rel=1e-5)
    found, _ = generalized_advantage_estimate(advantages, values, kept, gamma=gamma, gae_lambda=lam)
    for i in range(shape[0]):
        follow, carry = 0.0, 0.0
        for t in reversed(range(int(mask[i].sum()))):
            delta = float(columns[2][i, t]) + gamma * follow - float(columns[3][i, t])
            carry, follow = delta + gamma * lam * carry, float(columns[3][i, t])
            assert float(found[i, t]) == pytest.approx(carry, rel=1e-4, abs=1e-5)


def test_the_device_computes_what_the_cpu_computes(
    world: Path, tmp_path: Path, run: tuple[str, PPOModule, Recorder]
) -> None:
    precision, _, recorder = run
    if precision != "32-true":
        pytest.skip("two devices round bf16 differently")
    _, cpu = fit(world, tmp_path, "cpu", precision)
    for ours, theirs in zip(recorder.metrics, cpu.metrics, strict=True):
        for name in ("rollout/score", "rollout/kl", "loss/policy", "loss/value", "loss/ptx", "update/grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=5e-3, abs=1e-4), name
