"""Where things are on a GPU, in which dtype, and how often its host waits."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from lit_rlhf.models.compact import compact_rows
from lit_rlhf.models.frozen import FrozenModel
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.tokenizer import load_tokenizer
from lit_rlhf.models.scoring import response_logprobs
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import LossConfig, PPOOptimizerConfig, ReferenceConfig
from lit_rlhf.rewards import ModelReward
from lit_rlhf.rollout.requests import generation_request
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import PromptBatch
from tests.modules.test_precision import MAX_NORM, Norms
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer
from tests.test_pretend_device import LOOK, MICRO_BATCH

pytestmark = pytest.mark.cuda
# `placement: cpu` for both frozen models: nothing belongs on the device before training starts.
OFFLOADED: dict[str, Any] = {"reference": ReferenceConfig(placement="cpu")}


class Loaded(PPOModule):
    """Says how much device memory was taken when all models were loaded."""

    taken = -1

    def load_models(self) -> None:
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        super().load_models()
        self.taken = (torch.cuda.memory_allocated() if torch.cuda.is_available() else 0) - before


def test_loading_leaves_nothing_on_the_device(world: Path, tmp_path: Path, accelerator: str) -> None:
    module = make_ppo(world, Loaded, **OFFLOADED, reward=ModelReward(str(world / "reward"), placement="cpu"))
    trainer = make_trainer(tmp_path, accelerator=accelerator, max_epochs=1)
    trainer.fit(module, make_data(world))
    assert module.taken == 0


def test_offloaded_weights_are_pinned_and_leave(world: Path, device: torch.device, gpu_only: None) -> None:
    frozen = FrozenModel(load_causal_lm(str(world / "policy")), placement="cpu")
    ids = torch.arange(8, device=device)[None]
    before = torch.cuda.memory_allocated()
    with frozen.on(device) as held:
        assert held(input_ids=ids).logits.isfinite().all()
        assert torch.cuda.memory_allocated() > before
    assert torch.cuda.memory_allocated() <= before + 2**20
    assert all(p.is_pinned() for p in frozen.model.parameters())


def test_the_fused_step_is_taken(world: Path, tmp_path: Path, accelerator: str) -> None:
    module = make_ppo(world)
    trainer = make_trainer(tmp_path, accelerator=accelerator, max_epochs=1, limit_val_batches=0)
    trainer.fit(module, make_data(world))
    assert trainer.optimizers[0].defaults["fused"]


def test_fp16_clips_the_gradient_without_its_scale(
    world: Path, tmp_path: Path, accelerator: str, gpu_only: None
) -> None:
    norms = Norms()
    module = make_ppo(world, optimizer=PPOOptimizerConfig(lr=1e-3, critic_lr=1e-3, max_grad_norm=MAX_NORM))
    trainer = make_trainer(tmp_path, accelerator=accelerator, precision="16-mixed", callbacks=[norms], max_epochs=4)
    trainer.fit(module, make_data(world))
    assert len(norms.seen) >= 4
    assert norms.seen == pytest.approx([min(MAX_NORM, norm) for norm in norms.logged[-len(norms.seen) :]], rel=1e-2)


@pytest.mark.filterwarnings("ignore:.*trains bf16 weights")
def test_bf16_weights_leave_columns_fp32(world: Path, tmp_path: Path, accelerator: str) -> None:
    recorder = Recorder()
    trainer = make_trainer(tmp_path, accelerator=accelerator, precision="bf16-true", callbacks=[recorder])
    trainer.fit(make_ppo(world, reference=ReferenceConfig(dtype="bfloat16")), make_data(world))
    columns = ("old_logprobs", "ref_logprobs", "old_values", "scores", "rewards", "advantages", "returns")
    assert {getattr(e, name).dtype for e in recorder.experiences for name in columns} == {torch.float32}
    assert recorder.metrics[0]["rollout/kl"] == 0.0


def test_scoring_takes_a_flash_kernel(world: Path, tmp_path: Path, accelerator: str, device: torch.device) -> None:
    """Right-padded rows need no mask, and so the fastest kernel will do, also backward."""
    recorder = Recorder()
    trainer = make_trainer(tmp_path, accelerator=accelerator, max_epochs=1, callbacks=[recorder], limit_val_batches=0)
    trainer.fit(make_ppo(world), make_data(world))
    policy = load_causal_lm(str(world / "policy"), dtype="bfloat16", attn_implementation="sdpa").to(device)
    rows = compact_rows(recorder.experiences[0].to(device), torch.arange(4, device=device))
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        logprobs, _ = response_logprobs(policy, rows)
        logprobs.sum().backward()
    assert logprobs.isfinite().all()
    assert policy.model.layers[0].self_attn.q_proj.weight.grad is not None


def prompts(device: torch.device) -> PromptBatch:
    ids = torch.tensor([[0, 4, 5, 6], [7, 8, 9, 10], [0, 0, 5, 9]])
    return PromptBatch(prompt_ids=ids, prompt_mask=ids > 0, records=({},) * 3).to(device)


def generated(world: Path, device: torch.device, engine: TransformersEngine, **sampling: Any) -> torch.Tensor:
    config = SamplingConfig(**{"max_response_length": 12, **sampling})
    policy = load_causal_lm(str(world / "policy")).to(device)
    uniforms = torch.rand(
        3, config.max_response_length, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    engine.setup(tokenizer=load_tokenizer(world / "policy"), device=device)
    engine.sync(policy)
    request = generation_request(policy, load_tokenizer(world / "policy"), prompts(device), uniforms, config)
    return engine.generate(request).response_ids


@pytest.mark.parametrize("options", [{"static_cache": True}, {"static_cache": True, "compile": True}])
def test_static_and_compiled_decoding_draw_the_same_tokens(
    world: Path, device: torch.device, accelerator: str, options: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    if accelerator == "cpu":  # minutes of a C++ compiler show nothing about a GPU
        plain = torch.compile
        monkeypatch.setattr(torch, "compile", lambda model, **_: plain(model, backend="eager"))
    torch.compiler.reset()
    wanted = generated(world, device, TransformersEngine(), temperature=0.0)
    assert torch.equal(generated(world, device, TransformersEngine(**options), temperature=0.0), wanted)


def test_top_p_draws_on_the_device_what_it_draws_on_the_cpu(world: Path, device: torch.device) -> None:
    found = [
        generated(world, where, TransformersEngine(), temperature=0.8, top_p=0.9, top_k=9, repetition_penalty=1.2)
        for where in (device, torch.device("cpu"))
    ]
    assert torch.equal(found[0].cpu(), found[1])


# ------------------------------------------------------------------------------------------------- waiting


def waits(work: Callable[[], Any]) -> int:
    """How often CUDA's host waited, as torch reports it."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in said)


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.9}])
def test_decode_steps_wait_no_more_than_stated(
    world: Path, device: torch.device, gpu_only: None, sampling: dict[str, float]
) -> None:
    def run(steps: int) -> int:
        length = {"max_response_length": steps, "min_response_length": steps}
        return waits(lambda: generated(world, device, TransformersEngine(drop_every=4), **length, **sampling))

    run(8)
    assert run(24) - run(8) <= 4 * LOOK


class Counting(PPOModule):
    """Counts the waits of every micro-batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waited: list[int] = []

    def minibatch_losses(self, *args: Any) -> Any:
        losses: list[torch.Tensor] = []
        self.waited.append(waits(lambda: losses.extend(super(Counting, self).minibatch_losses(*args))))
        return losses


def test_micro_batches_wait_no_more_than_stated(world: Path, tmp_path: Path, gpu_only: None) -> None:
    module = make_ppo(world, Counting, loss=LossConfig(entropy_coef=0.01))
    make_trainer(tmp_path, accelerator="cuda", limit_val_batches=0).fit(module, make_data(world))
    assert max(module.waited[1:]) <= MICRO_BATCH
