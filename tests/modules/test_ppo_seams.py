"""What PPO asks of its parts, and when: engine, reference, reward, columns that travel, groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lit_rlhf import SFTModule
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import CriticConfig
from lit_rlhf.ppo.estimators import GAE, GroupNormalized
from lit_rlhf.ppo.kl_controller import FixedKL
from lit_rlhf.ppo.losses import PolicyLoss
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import RewardOutput, ScoredRollout
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer, same, weights

# ---------------------------------------------------------------- the engine


class Diary(TransformersEngine):
    """Writes down what it is told, and the weights that it is told of."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []
        self.seen: list[Tensor] = []

    def setup(self, *, tokenizer: Any, device: torch.device) -> None:
        self.told.append(f"setup {device.type} {len(tokenizer) > 0}")

    def sync(self, policy: Any) -> None:
        super().sync(policy)
        self.told.append("sync")
        self.seen.append(next(policy.parameters()).detach().clone())

    def generate(self, request: Any) -> Any:
        self.told.append("generate")
        return super().generate(request)

    def rest(self) -> None:
        super().rest()
        self.told.append("rest")

    def close(self) -> None:
        self.told.append("close")


def test_the_engine_learns_of_weights_before_every_series_and_rests_after_it(world, tmp_path) -> None:
    engine = Diary()
    trainer = make_trainer(tmp_path, max_epochs=2)
    trainer.fit(make_ppo(world, engine=engine), make_data(world, eval_batch_size=2))
    rollout, validation = ["sync", "generate", "rest"], ["sync", "generate", "generate", "rest"]
    assert engine.told == ["setup cpu True", *rollout, *validation, *rollout, *validation, "close"]
    first, after_first, again, after_second = engine.seen
    assert torch.equal(after_first, again), "no update between a validation and the next rollout"
    assert not torch.equal(first, after_first)
    assert not torch.equal(again, after_second)
    assert trainer.callback_metrics["time/sync"] >= 0


def test_prediction_is_a_series_too(world, tmp_path) -> None:
    for module in (make_ppo(world, engine=Diary()), SFTModule(str(world / "policy"), engine=Diary())):
        make_trainer(tmp_path).predict(module, make_data(world, predict=str(world / "prompts.jsonl")))
        assert module.engine.told == ["setup cpu True", "sync", "generate", "rest", "close"]


def test_an_engine_is_not_asked_between_rest_and_sync(world, tmp_path) -> None:
    engine = TransformersEngine()
    module = make_ppo(world, engine=engine)
    trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    trainer.fit(module, data := make_data(world))
    uniforms = data.uniforms(0, module.sampling.max_response_length)
    with pytest.raises(RuntimeError, match="call `sync"):
        module.generate(data.take(0), uniforms, module.sampling)


def test_the_engine_is_told_of_the_longest_row_there_can_be(world, tmp_path) -> None:
    """From the data, before the first rollout: fixed buffers are then made once for training and validation."""
    asked = []

    class Listening(TransformersEngine):
        def generate(self, request: Any) -> Any:
            asked.append((request.longest_row, request.prompts.prompt_ids.size(1)))
            return super().generate(request)

    sampling = SamplingConfig(max_response_length=13)
    module, data = make_ppo(world, engine=Listening(), eval_sampling=sampling), make_data(world, eval_batch_size=2)
    make_trainer(tmp_path, max_epochs=2).fit(module, data)
    longest = max(len(prompt.ids) for prompt in data._prompts["val"]) + 13
    longest = max(longest, max(len(prompt.ids) for prompt in data._prompts["train"]) + 10)
    assert {row for row, _ in asked} == {longest}
    assert len({width for _, width in asked}) > 1


# ---------------------------------------------------------------- no reference


def test_without_a_reference_nothing_is_loaded_or_asked_and_its_metrics_are_absent(world, tmp_path) -> None:
    with_one = make_ppo(world, kl_controller=FixedKL(0))
    without = make_ppo(world, kl_controller=FixedKL(0), reference=None)
    logged, passes = [], []
    for module in (with_one, without):
        recorder = Recorder()
        module.configure_model()
        module.policy.base_model.register_forward_pre_hook(lambda *_: passes.append("policy"))
        make_trainer(tmp_path, callbacks=[recorder]).fit(module, make_data(world))
        logged.append(recorder.metrics[-1])
    assert without.reference is None
    assert same(weights(with_one), weights(without)), "a reference without a penalty changed the update"
    gone = logged[0].keys() - logged[1].keys()
    assert gone == {
        *("rollout/kl", "rollout/kl_k3", "rollout/kl_sequence", "rollout/ref_perplexity", "val/kl", "val/kl_sequence")
    }
    assert recorder.experiences[0].ref_logprobs is None


class ReadsTheReference(PolicyLoss):
    needs_reference = True

    def __call__(self, logprobs, old_logprobs, advantages, taken):
        return logprobs - taken.ref_logprobs, torch.zeros_like(taken.response_mask)


def test_a_loss_that_reads_the_reference_is_refused_without_one(world) -> None:
    with pytest.raises(ValueError, match=r"`reference` \(null\) is needed by `policy_loss` \(ReadsTheReference\)"):
        make_ppo(world, reference=None, kl_controller=FixedKL(0), policy_loss=ReadsTheReference())


def test_a_path_is_enough_for_a_reference(world) -> None:
    assert make_ppo(world, reference="folder").models.reference_path == "folder"
    assert make_ppo(world).models.reference_path == str(world / "policy")


# ---------------------------------------------------------------- rewards that fail


class Miscounts(Reward):
    """One score too few from the second request on."""

    calls = 0

    def score(self, request: Any) -> RewardOutput:
        self.calls += 1
        return RewardOutput(scores=torch.zeros(len(request.prompts) - (self.calls > 1)))


def test_skip_skips_scores_that_are_not_finite_and_no_other_fault(world, tmp_path) -> None:
    module = make_ppo(world, reward=Miscounts(), critic=CriticConfig(init="policy"), on_non_finite="skip")
    with pytest.raises(ValueError, match=r"must give scores of shape \(16,\), not \(15,\)"):
        make_trainer(tmp_path, max_epochs=3).fit(module, make_data(world, val=None))


# ---------------------------------------------------------------- columns that travel


class Marked(PPOModule):
    """Gives every row and token a number of its own, and watches them arrive."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.arrived: list[dict[str, Tensor]] = []

    def score_rollout(self, rollout, micro_batches):
        scored, entropy = super().score_rollout(rollout, micro_batches)
        extras = {"first_token": rollout.response_ids[:, 0], "token": rollout.response_ids.clone()}
        return replace(scored, extras=extras), entropy

    def policy_token_loss(self, logprobs, old_logprobs, advantages, taken):
        assert taken.extras["token"].shape == logprobs.shape
        assert torch.equal(taken.extras["token"], taken.response_ids)
        assert torch.equal(taken.extras["first_token"], taken.response_ids[:, 0])
        self.arrived.append(dict(taken.extras))
        return super().policy_token_loss(logprobs, old_logprobs, advantages, taken)


def test_extras_travel_to_the_update_and_through_a_resume_in_the_middle(world, tmp_path) -> None:
    straight = make_ppo(world, kind=Marked)
    make_trainer(tmp_path / "a").fit(straight, make_data(world))
    saver = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=1, save_top_k=-1)
    make_trainer(tmp_path / "b", max_steps=1, enable_checkpointing=True, callbacks=[saver]).fit(
        make_ppo(world, kind=Marked), make_data(world)
    )
    resumed = make_ppo(world, kind=Marked)
    make_trainer(tmp_path / "c").fit(
        resumed, make_data(world), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True
    )
    assert 0 < len(resumed.arrived) < len(straight.arrived)
    for a, b in zip(resumed.arrived[::-1], straight.arrived[::-1], strict=False):
        assert all(torch.equal(a[name], b[name]) for name in ("first_token", "token"))
    assert same(weights(resumed), weights(straight))


class Together(PolicyLoss):
    """Notes which groups share a micro-batch, and how many rows of each."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, logprobs, old_logprobs, advantages, taken):
        self.sizes += taken.group.unique(return_counts=True)[1].tolist()
        return -(logprobs - old_logprobs).exp() * advantages, torch.zeros_like(taken.response_mask)


@pytest.mark.parametrize("keep", [True, False])
def test_groups_share_a_micro_batch_where_that_is_asked_for(world, tmp_path, keep) -> None:
    loss, recorder = Together(), Recorder()
    module = make_ppo(world, policy_loss=loss, estimator=GroupNormalized(4))
    trainer = make_trainer(tmp_path, callbacks=[recorder], limit_val_batches=0)
    trainer.fit(module, make_data(world, keep_groups=keep, micro_batch_tokens=64))
    assert sum(loss.sizes) == 32
    assert (set(loss.sizes) == {4}) == keep
    prompts = recorder.experiences[0].prompt_ids
    groups = recorder.experiences[0].group
    assert groups.unique(return_counts=True)[1].tolist() == [4] * 4
    for group in groups.unique():
        assert len(prompts[groups == group].unique(dim=0)) == 1


# ---------------------------------------------------------------- modules and data


def test_a_rollout_data_module_says_what_it_trains(world, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"trains a module that collects experience .* SFTModule does not"):
        make_trainer(tmp_path).fit(SFTModule(str(world / "policy")), make_data(world))


def test_load_from_checkpoint_works_with_the_arguments_and_says_which_are_missing(world, tmp_path: Path) -> None:
    module = make_ppo(world)
    trainer: L.Trainer = make_trainer(tmp_path, limit_val_batches=0)
    trainer.fit(module, make_data(world))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"load_from_checkpoint` also needs `policy`, `reward`.*lit-rlhf export"):
        PPOModule.load_from_checkpoint(tmp_path / "x.ckpt")
    loaded = PPOModule.load_from_checkpoint(
        tmp_path / "x.ckpt", policy=str(world / "policy"), reward=ModelReward(str(world / "reward"))
    )
    assert same(weights(loaded), weights(module))
    assert loaded.moments == module.moments


# ---------------------------------------------------------------- estimators and losses of one's own


class Remembers(GAE):
    """Subtracts the mean reward of all iterations so far."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.count = 0.0, 0

    def estimate(self, scored: ScoredRollout, rewards: Tensor) -> tuple[Tensor, Tensor]:
        self.total, self.count = self.total + float(rewards.sum()), self.count + len(rewards)
        shifted = torch.where(scored.response_mask, rewards - self.total / self.count, 0.0)
        return super().estimate(scored, shifted)

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self.count = state["total"], state["count"]


def test_what_an_estimator_remembers_survives_a_resume(world, tmp_path) -> None:
    def fit(epochs: int, ckpt_path: Path | None = None) -> PPOModule:
        module = make_ppo(world, estimator=Remembers())
        trainer = make_trainer(tmp_path, max_epochs=epochs, limit_val_batches=0)
        trainer.fit(module, make_data(world), ckpt_path=ckpt_path, weights_only=True)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    fit(1)
    resumed, straight = fit(2, tmp_path / "1.ckpt"), fit(2)
    assert resumed.estimator.state_dict() == straight.estimator.state_dict()
    assert same(weights(resumed), weights(straight))


class OneNumber(PolicyLoss):
    """Has taken the mean already."""

    def __call__(self, logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, taken: Any) -> Any:
        return -(logprobs * advantages).mean(), logprobs > 0


class NoReturns(GAE):
    """Forgets the critic's targets."""

    def estimate(self, scored: ScoredRollout, rewards: Tensor) -> Any:
        return super().estimate(scored, rewards)[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"policy_loss": OneNumber()},
            r"`policy_token_loss` \(OneNumber\) must give two tensors of shape \(\d+, \d+\), not",
        ),
        (
            {"estimator": NoReturns()},
            r"`estimate_advantages` \(NoReturns\) must give two tensors of shape \(16, 10\), not",
        ),
    ],
)
def test_what_is_no_pair_of_columns_is_refused_by_name(world, tmp_path, options, told) -> None:
    with pytest.raises(ValueError, match=told):
        make_trainer(tmp_path, limit_val_batches=0).fit(make_ppo(world, **options), make_data(world))
