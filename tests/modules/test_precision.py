"""Half precisions: what AdamW sees under fp16's loss scale, and what stays fp32 when the weights are bf16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lit_rlhf import PreferenceDataModule, RewardModelModule, SFTDataModule, SFTModule
from lit_rlhf.modules.base import NonFiniteError, on_host
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import LossConfig, PPOOptimizerConfig, PTXConfig, ReferenceConfig
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.strategies.precision import cpu_has_bf16
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer, same, weights

MAX_NORM = 0.5


class Norms(L.Callback):
    """Norm of the gradient that the optimizer is about to step along, and the logged one; what was skipped."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.logged: list[float] = []
        self.skipped = 0.0

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        self.seen.append(float(nn.utils.get_total_norm(gradients)))

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.logged.append(float(trainer.callback_metrics.get("update/grad_norm", float("nan"))))
        self.skipped = float(trainer.callback_metrics.get("update/skipped", 0.0))


def fp16(**scaler: Any) -> MixedPrecision:
    """Lightning's `16-mixed` as on a GPU: on a CPU it would quietly take bf16."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **scaler))


def fit(
    world: Path, root: Path, plugin: MixedPrecision | None, kind: type[PPOModule] = PPOModule, **options: Any
) -> tuple[PPOModule, Norms]:
    optimizer = PPOOptimizerConfig(lr=1e-3, critic_lr=1e-3, max_grad_norm=MAX_NORM)
    module, norms = make_ppo(world, kind, optimizer=optimizer, **options), Norms()
    trainer = make_trainer(root, callbacks=[norms], plugins=[plugin] if plugin else [], limit_val_batches=0)
    trainer.fit(module, make_data(world))
    return module, norms


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
def test_fp16_clips_the_gradient_without_its_scale(world: Path, tmp_path: Path, scale: float) -> None:
    _, plain = fit(world, tmp_path, None)
    _, scaled = fit(world, tmp_path, fp16(init_scale=scale))
    assert min(plain.logged) > 2 * MAX_NORM  # the clip has something to do
    assert scaled.logged == pytest.approx(plain.logged, rel=0.02)
    assert scaled.seen == pytest.approx([MAX_NORM] * len(plain.seen), rel=1e-3)
    assert scaled.skipped == 0


def test_fp16_overflow_is_skipped_and_lowers_the_scale(world: Path, tmp_path: Path) -> None:
    plugin = fp16(init_scale=2.0**40, backoff_factor=2.0**-24)
    module, norms = fit(world, tmp_path, plugin)
    assert norms.skipped == module.skipped_updates == 1
    assert plugin.scaler.get_scale() == 2.0**16
    assert len(norms.seen) == 3  # of four updates
    assert norms.seen == pytest.approx([MAX_NORM] * 3, rel=1e-3)
    assert module.trainer.global_step == 3


def test_fp16_skips_leave_the_weights_alone(world: Path, tmp_path: Path) -> None:
    start, module = make_ppo(world), make_ppo(world)
    start.configure_model()
    plugin = fp16(init_scale=2.0**60, backoff_factor=0.5)
    trainer = make_trainer(tmp_path, plugins=[plugin], limit_val_batches=0)
    with pytest.raises(NonFiniteError, match="None of the 4 updates was made"):  # a run that learned nothing has failed
        trainer.fit(module, make_data(world))
    assert plugin.scaler.get_scale() == 2.0**56
    assert same(weights(module), weights(start))


class Broken(PPOModule):
    """The gradient is not finite, whatever the scale."""

    def load_models(self) -> None:
        super().load_models()
        next(self.critic.parameters()).register_hook(lambda gradient: gradient * float("inf"))


def test_fp16_stops_where_no_scale_would_help(world: Path, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="gradient norm is not finite"):
        fit(world, tmp_path, fp16(init_scale=4.0), Broken)


# ------------------------------------------------------------------------------------------------- bf16-true


class Watched(PPOModule):
    """Keeps the dtypes of what updates and evaluations are made of."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dtypes: dict[str, torch.dtype] = {}

    def minibatch_losses(self, minibatch: Any, part: int, sums: Any) -> Any:
        for loss in super().minibatch_losses(minibatch, part, sums):
            self.dtypes["share"] = loss.dtype
            yield loss
        self.dtypes |= {f"sum of {k}": v.dtype for k, v in {**sums._shares, **sums._tokens}.items()}
        self.dtypes |= {"drift": sums._drift.dtype, "variance": sums._variance.dtype}

    def policy_token_loss(self, logprobs: Tensor, old: Tensor, advantages: Tensor, taken: Any) -> Any:
        loss, clipped = super().policy_token_loss(logprobs, old, advantages, taken)
        seen = {"logprobs": logprobs, "old": old, "advantages": advantages, "loss": loss}
        self.dtypes |= {name: value.dtype for name, value in seen.items()}
        return loss, clipped

    def critic_token_loss(self, values: Tensor, taken: Any) -> Any:
        self.dtypes["values"] = values.dtype
        return super().critic_token_loss(values, taken)

    def optimize(self, losses: Any) -> Any:
        result = super().optimize(losses)
        self.dtypes |= {name: value.dtype for name, value in result.items()}
        return result


class Held(Recorder):
    """Keeps validation's columns too."""

    def on_validation_rollout(self, trainer: L.Trainer, module: L.LightningModule, experience: Any) -> None:
        self.experiences.append(experience)


def floating(columns: Any) -> dict[str, torch.dtype]:
    return {
        name: value.dtype
        for name, value in columns.as_dict().items()
        if isinstance(value, Tensor) and value.is_floating_point()
    }


@pytest.mark.parametrize("source", ["rollout", "sampler"])
def test_bf16_weights_leave_every_ppo_column_fp32(world: Path, tmp_path: Path, source: str) -> None:
    held = Held()
    module = make_ppo(
        world,
        Watched,
        loss=LossConfig(entropy_coef=0.01, whiten_advantages=True, old_logprobs=source),
        engine=TransformersEngine(sampler_logprobs=source == "sampler"),
        reference=ReferenceConfig(dtype="bfloat16"),
        sampling=SamplingConfig(max_response_length=10, temperature=0.8, top_p=0.9, repetition_penalty=1.1),
    )
    data = make_data(world, ptx=PTXConfig(files=[str(world / "texts.jsonl")], max_length=16))
    trainer = make_trainer(tmp_path, precision="bf16-true", callbacks=[held])
    with pytest.warns(UserWarning, match=r"`precision` \(bf16-true\) trains bf16 weights"):
        trainer.fit(module, data)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert len(held.experiences) == 4  # two rollouts, two validations
    for experience in held.experiences:
        columns = floating(experience)
        assert {"old_logprobs", "ref_logprobs", "old_values", "scores", "token_scores"} <= set(columns)
        assert set(columns.values()) == {torch.float32}
    assert set(module.dtypes.values()) <= {torch.float32, torch.float64}
    assert len(module.dtypes) > 15
    # What was drawn is what was scored, by policy and reference alike: their positions have the same frequencies.
    assert held.metrics[0]["update/ratio_drift"] < (1e-12 if source == "rollout" else 0.1)
    if source == "rollout":
        assert held.metrics[0]["rollout/kl"] == held.metrics[0]["rollout/kl_k3"] == 0.0


def test_bf16_weights_keep_fp32_frequencies(world: Path, tmp_path: Path) -> None:
    module = make_ppo(world)
    module.configure_model()
    wanted = module.policy.model.rotary_emb.inv_freq.clone()
    module.to(torch.bfloat16)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    for model in (module.policy.model, module.critic.trunk):
        assert model.rotary_emb.inv_freq.dtype == torch.float32
        assert torch.equal(model.rotary_emb.inv_freq, wanted)
    assert module.to("meta").policy.model.rotary_emb.inv_freq.device.type == "meta"


class Scores(RewardModelModule):
    """Keeps the dtypes of both scores, and what the report is made from."""

    dtypes: set[torch.dtype]

    def ranking_loss(self, chosen: Tensor, rejected: Tensor, pairs: Any) -> Tensor:
        loss = super().ranking_loss(chosen, rejected, pairs)
        self.dtypes |= {chosen.dtype, rejected.dtype, loss.dtype}
        return loss

    def on_test_epoch_end(self) -> None:
        self.scores = [pair.chosen_score for pair in self._pairs]
        super().on_test_epoch_end()


def write_rows(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(file)


@pytest.mark.filterwarnings("ignore:.*trains bf16 weights")
def test_bf16_weights_leave_scores_fp32(world: Path, tmp_path: Path) -> None:
    pairs = [{"prompt": "abc" + "d" * (i % 4), "chosen": "gh" + "a" * (i % 5), "rejected": "b"} for i in range(16)]
    file = write_rows(tmp_path / "pairs.jsonl", pairs)
    module = Scores(str(world / "policy"), micro_batch_tokens=64)
    module.dtypes = set()
    data = PreferenceDataModule(train=file, test=file, batch_size=8, max_length=32)
    trainer = make_trainer(tmp_path, precision="bf16-true", max_epochs=1)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module.dtypes == {torch.float32}
    rounded = [float(torch.tensor(score).bfloat16()) for score in module.scores]
    assert rounded != pytest.approx(module.scores, rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*trains bf16 weights")
def test_bf16_weights_leave_the_sft_loss_fp32(world: Path, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "gh" + "a" * (i % 5)}]}
        for i in range(16)
    ]
    file = write_rows(tmp_path / "chat.jsonl", rows)
    module = SFTModule(str(world / "policy"), micro_batch_tokens=64)
    trainer = make_trainer(tmp_path, precision="bf16-true", max_epochs=1)
    trainer.fit(module, SFTDataModule(train=file, val=file, batch_size=8, max_length=32))
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module._sums.dtype == torch.float64
    loss = float(trainer.callback_metrics["loss/lm"])
    assert loss != float(torch.tensor(loss).bfloat16())


def test_fp16_weights_are_refused_before_anything_loads(world: Path, tmp_path: Path) -> None:
    module = make_ppo(world)
    with pytest.raises(ValueError, match=r"`precision` \(16-true\) keeps nothing but fp16 weights"):
        make_trainer(tmp_path, precision="16-true").fit(module, make_data(world))
    assert module.policy is None


def test_models_load_on_the_host_in_fp32(world: Path) -> None:
    """Lightning makes the accelerator (and half a dtype) torch's default around `configure_model`."""
    module = make_ppo(world)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            module.configure_model()
            assert torch.zeros(1).device.type == "meta"
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    tensors = [*module.parameters(), *module.buffers(), *module.reference.model.parameters()]
    assert {t.device.type for t in tensors} == {"cpu"}
    assert {t.dtype for t in tensors} == {torch.float32}


def test_on_host_gives_the_default_back_after_an_error() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match=r"torch\.float32"), on_host():
            raise ValueError(torch.zeros(1).dtype)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_bf16_on_a_cpu_that_emulates_it_is_said(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    with pytest.warns(UserWarning, match=r"`precision` \(bf16-mixed\): this CPU has no bf16 instructions") as seen:
        make_trainer(tmp_path / "a", precision="bf16-mixed", limit_val_batches=0, max_epochs=1).fit(
            make_ppo(world), make_data(world)
        )
    assert len([w for w in seen if "bf16 instructions" in str(w.message)]) == 1
    assert not cpu_has_bf16()


@pytest.mark.parametrize(
    "told",
    [
        {"architecture": "x86_64", "avx512_bf16": True},
        {"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True},
        {"architecture": "aarch64"},
        {},
    ],
)
def test_a_cpu_with_bf16_or_that_is_not_known_is_left_in_peace(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert cpu_has_bf16()
