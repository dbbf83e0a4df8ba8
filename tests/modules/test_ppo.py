"""PPOModule against the invariants of docs/architecture.md, one process."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoTokenizer

from lit_rlhf.callbacks import CriticWarmup
from lit_rlhf.config import ScheduleConfig
from lit_rlhf.data.tokenizing import TokenCache
from lit_rlhf.datamodules.ptx import PTXText
from lit_rlhf.functional.moments import RunningMoments
from lit_rlhf.modules.base import NonFiniteError
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import CriticConfig, LossConfig, PPOOptimizerConfig, PTXConfig, ShapingConfig
from lit_rlhf.ppo.estimators import GAE, GroupNormalized, LeaveOneOut
from lit_rlhf.ppo.kl_controller import AdaptiveKL, FixedKL
from lit_rlhf.ppo.losses import ClippedSurrogate, ClippedValueLoss, KLPenaltySurrogate
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rewards.length import LengthReward
from lit_rlhf.rewards.missing_eos import MissingEOSReward
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.types import RewardOutput
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer, same, weights


def fit(world: Path, root: Path, *, module=None, data=None, **options):
    recorder = Recorder()
    module = module or make_ppo(world)
    trainer = make_trainer(root, callbacks=[recorder, *options.pop("callbacks", [])], **options)
    trainer.fit(module, data or make_data(world))
    return module, trainer, recorder


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("budget", [24, 64, 100_000])
def test_first_ratio_of_every_iteration_is_exactly_one(world, tmp_path, precision, budget) -> None:
    data = make_data(world, micro_batch_tokens=budget)
    _, _, recorder = fit(world, tmp_path, data=data, precision=precision, max_epochs=3)
    drifts = [m["update/ratio_drift"] for m in recorder.metrics[::2]]
    assert drifts == [0.0, 0.0, 0.0]
    assert any(m["update/approx_kl"] > 0 for m in recorder.metrics), "no update moved the policy"


def test_one_epoch_is_one_rollout_and_its_updates(world, tmp_path) -> None:
    data = make_data(world, ppo_epochs=2)
    module, trainer, recorder = fit(world, tmp_path, data=data, max_epochs=3)
    assert len(recorder.experiences) == 3
    assert trainer.global_step == 3 * 4
    assert module.iteration == 2
    assert all(len(e) == 16 for e in recorder.experiences)


@pytest.mark.parametrize(("budget", "times"), [(64, 2), (768, 2), (769, 0)])
def test_freed_memory_goes_back_before_each_rollout_where_passes_are_small(
    world, tmp_path, monkeypatch, budget, times
) -> None:
    calls = []
    monkeypatch.setattr("lit_rlhf.models.cpu.memory.trim", lambda: calls.append(1) or True)
    fit(world, tmp_path, data=make_data(world, micro_batch_tokens=budget), max_epochs=2)
    assert len(calls) == times


def test_micro_batching_does_not_change_the_update(world, tmp_path) -> None:
    results = [
        weights(fit(world, tmp_path, data=make_data(world, micro_batch_tokens=budget), max_epochs=1)[0])
        for budget in (24, 100_000)
    ]
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("stop", [2, 3], ids=["between iterations", "in the middle of an iteration"])
def test_resume_is_bit_for_bit(world, tmp_path, stop) -> None:
    def options():
        return {"module": make_ppo(world, kl_controller=AdaptiveKL(0.1, target=0.5, horizon=50)), "max_epochs": 3}

    straight, _, _ = fit(world, tmp_path / "a", **options())
    half = options()
    saver = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=stop)
    first, _, _ = fit(world, tmp_path / "b", max_steps=stop, enable_checkpointing=True, callbacks=[saver], **half)
    resumed = options()["module"]
    make_trainer(tmp_path / "b", max_epochs=3).fit(
        resumed, make_data(world), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True
    )
    assert not same(weights(first), weights(straight))
    assert same(weights(resumed), weights(straight))
    assert resumed.kl_controller.value == straight.kl_controller.value
    assert resumed.moments == straight.moments


def test_a_resume_in_the_middle_of_an_iteration_keeps_records_that_json_has_no_value_for(
    world, tmp_path, monkeypatch
) -> None:
    """Data sets with a time column: the raw records are in the checkpoint, which holds plain values alone."""
    rows = [json.loads(line) for line in (world / "prompts.jsonl").read_text().splitlines()]
    table = Dataset.from_list([{**row, "written": datetime(2023, 7, 11, 12, row["id"])} for row in rows])
    assert isinstance(table[3]["written"], datetime)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: table)

    def data():
        return make_data(world, train="owner/name", val=None)

    straight, _, recorder = fit(world, tmp_path / "a", data=data(), max_epochs=2)
    assert recorder.experiences[0].records[0]["written"].startswith("2023-07-11T12:")
    saver = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=3)
    fit(world, tmp_path / "b", data=data(), max_steps=3, enable_checkpointing=True, callbacks=[saver], max_epochs=2)
    resumed, again = make_ppo(world), Recorder()
    make_trainer(tmp_path / "b", callbacks=[again]).fit(
        resumed, data(), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True
    )
    assert same(weights(resumed), weights(straight))
    assert not again.experiences, "the iteration was not resumed but begun anew"


def test_resume_from_the_end_of_an_epoch_is_bit_for_bit(world, tmp_path) -> None:
    """Where ModelCheckpoint saves by default, and where Lightning leaves the loader's state out."""
    straight, _, recorder = fit(world, tmp_path / "a", max_epochs=3)
    fit(world, tmp_path / "b", max_epochs=1, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path, "end")])
    resumed, again = make_ppo(world), Recorder()
    make_trainer(tmp_path / "b", max_epochs=3, callbacks=[again]).fit(
        resumed, make_data(world), ckpt_path=str(tmp_path / "end.ckpt"), weights_only=True
    )
    assert len(again.experiences) == 2
    assert torch.equal(again.experiences[0].prompt_ids, recorder.experiences[1].prompt_ids), "an iteration came twice"
    assert same(weights(resumed), weights(straight))


class SavesInside(PPOModule):
    """Saves before the optimizer's step of update ``at``, where a loss that is not finite saves as well."""

    at, path = 0, ""

    def optimize(self, losses):
        if self.global_step == self.at:
            self.trainer.save_checkpoint(self.path)
        return super().optimize(losses)


@pytest.mark.parametrize("at", range(6))
def test_resume_from_inside_an_update_does_it_again(world, tmp_path, at) -> None:
    def module(kind: type[PPOModule]) -> PPOModule:
        return make_ppo(world, kind=kind, kl_controller=AdaptiveKL(0.1, target=0.5, horizon=50))

    straight = module(SavesInside)
    straight.at, straight.path = at, str(tmp_path / "inside.ckpt")
    data = {"minibatch_size": 8, "micro_batch_tokens": 100_000}
    _, trainer, recorder = fit(world, tmp_path / "a", module=straight, data=make_data(world, **data), max_epochs=3)
    resumed, again = module(PPOModule), Recorder()
    after = make_trainer(tmp_path / "b", max_epochs=3, callbacks=[again])
    after.fit(resumed, make_data(world, **data), ckpt_path=straight.path, weights_only=True)
    assert (after.global_step, len(again.metrics)) == (trainer.global_step, len(recorder.metrics) - at)
    counted, expected = (t.fit_loop.epoch_loop.state_dict() for t in (after, trainer))
    for name in ("state_dict", "batch_progress"):  # the loggers' steps, the batches in all
        assert counted[name] == expected[name]
    assert same(weights(resumed), weights(straight))
    assert resumed.moments == straight.moments
    assert resumed.kl_controller.value == straight.kl_controller.value


def test_checkpoint_holds_no_frozen_weight_and_loads_without_code(world, tmp_path) -> None:
    module, trainer, _ = fit(world, tmp_path, max_epochs=1)
    before = [p.clone() for p in module.reference.model.parameters()]
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert {key.split(".")[0] for key in state["state_dict"]} == {"policy", "critic"}
    assert not module.reference.model.training
    assert all(not p.requires_grad for p in module.reference.model.parameters())
    moved = [not torch.equal(p, q) for p, q in zip(module.policy.parameters(), before, strict=True)]
    assert any(moved), "the policy did not train"
    fresh = make_ppo(world)
    fresh.configure_model()
    for a, b in zip(fresh.reference.model.parameters(), before, strict=True):
        assert torch.equal(a, b), "the reference moved"


def test_moments_include_the_current_batch(world, tmp_path) -> None:
    module, _, recorder = fit(world, tmp_path, max_epochs=2)
    expected = RunningMoments()
    for experience in recorder.experiences:
        expected = expected.update_from(experience.scores)
    assert module.moments.count == expected.count == 32
    assert module.moments.mean == pytest.approx(expected.mean, rel=1e-12)
    first = recorder.experiences[0]
    own = RunningMoments().update_from(first.scores)
    shaped = ((first.scores - own.mean) / own.std).clamp(-0.8, 0.8)
    last = first.response_mask.sum(1) - 1
    # At step 0 the policy is the reference, so the last token's reward is the shaped score alone.
    got = first.rewards[torch.arange(16), last]
    torch.testing.assert_close(got, shaped, rtol=0, atol=1e-6)


def test_kl_penalty_pulls_towards_the_reference(world, tmp_path) -> None:
    kls = {}
    for coef in (0.0, 1.0):
        module = make_ppo(world, kl_controller=FixedKL(coef), optimizer=PPOOptimizerConfig(lr=5e-3, critic_lr=5e-3))
        _, _, recorder = fit(world, tmp_path / str(coef), module=module, max_epochs=12)
        kls[coef] = recorder.metrics[-1]["rollout/kl_k3"]
    assert kls[1.0] < 0.7 * kls[0.0]


def test_ppo_learns_to_say_the_rewarded_letter(world, tmp_path) -> None:
    class CountsA(Reward):
        def score(self, request):
            shares = [text.count("a") / max(1, len(text)) for text in request.responses]
            return RewardOutput(scores=torch.tensor(shares))

    module = make_ppo(
        world,
        reward=CountsA(),
        critic=CriticConfig(init="policy"),
        kl_controller=FixedKL(0.0),
        optimizer=PPOOptimizerConfig(lr=5e-3, critic_lr=5e-3),
    )
    _, _, recorder = fit(world, tmp_path, module=module, data=make_data(world, rollout_batch_size=32), max_epochs=25)
    scores = [m["rollout/score"] for m in recorder.metrics]
    assert scores[-1] > scores[0] + 0.3, scores


def test_critic_warmup_leaves_the_policy_bitwise_unchanged(world, tmp_path) -> None:
    fresh = make_ppo(world)
    fresh.configure_model()
    before = weights(fresh)
    module, _, _ = fit(world, tmp_path, max_epochs=2, callbacks=[CriticWarmup(iterations=2)])
    after = weights(module)
    assert all(torch.equal(after[k], before[k]) for k in before if k.startswith("policy."))
    assert any(not torch.equal(after[k], before[k]) for k in before if k.startswith("critic."))


@pytest.mark.parametrize("estimator", [GroupNormalized(4), LeaveOneOut(4)])
def test_critic_free_estimators_load_no_critic(world, tmp_path, estimator) -> None:
    module = make_ppo(world, estimator=estimator)
    module, _, recorder = fit(world, tmp_path, module=module, max_epochs=2)
    assert module.critic is None
    assert not any("critic" in key for key in module.state_dict())
    experience = recorder.experiences[0]
    groups = [tuple(map(bytes, experience.prompt_ids[i : i + 4].numpy())) for i in range(0, 16, 4)]
    assert all(len(set(group)) == 1 for group in groups), "a group holds different prompts"
    assert recorder.metrics[-1]["update/grad_norm"] > 0


def test_every_switch_of_figure_5_changes_the_update(world, tmp_path) -> None:
    variants = {
        "base": {},
        "importance sampling": {"loss": LossConfig(old_logprobs="reference")},
        "entropy": {"loss": LossConfig(entropy_coef=0.05)},
        "entropy clip": {"loss": LossConfig(entropy_coef=0.05, entropy_clip=1.0)},
        "scaling": {"shaping": ShapingConfig(normalize=False, scale=True, clip=None)},
        "score clip": {"shaping": ShapingConfig(clip=0.1)},
        "whitening": {"loss": LossConfig(whiten_advantages=True)},
        "advantage clip": {"loss": LossConfig(advantage_clip=0.05)},
        "no value clip": {"critic_loss": ClippedValueLoss(None)},
        "kl objective": {"policy_loss": KLPenaltySurrogate(5.0)},
        "no surrogate clip": {"policy_loss": ClippedSurrogate(None)},
        "lambda": {"estimator": GAE(gae_lambda=0.0)},
        "gamma": {"estimator": GAE(gamma=0.5)},
        "kl": {"kl_controller": FixedKL(0.5)},
        "grad clip": {"optimizer": PPOOptimizerConfig(lr=1e-2, critic_lr=1e-2, max_grad_norm=1e-3)},
        "missing eos": {"shaping": ShapingConfig(missing_eos_score=-5.0)},
        "response average": {"loss": LossConfig(average="responses")},
        "ptx": {},
    }
    results = {}
    for name, options in variants.items():
        optimizer = {"optimizer": PPOOptimizerConfig(lr=1e-2, critic_lr=1e-2)}
        module = make_ppo(world, **{**optimizer, **options})
        ptx = PTXConfig(files=[str(world / "texts.jsonl")]) if name == "ptx" else None
        data = make_data(world, ppo_epochs=2, ptx=ptx)
        results[name] = weights(fit(world, tmp_path, module=module, data=data, max_epochs=2)[0])
    equal = [name for name, state in results.items() if name != "base" and same(state, results["base"])]
    assert not equal, f"no effect: {equal}"


def test_target_kl_leaves_out_the_rest_of_an_iteration(world, tmp_path) -> None:
    module = make_ppo(world, loss=LossConfig(target_kl=1e-6), optimizer=PPOOptimizerConfig(lr=1e-2, critic_lr=1e-2))
    module, trainer, recorder = fit(world, tmp_path, module=module, data=make_data(world, ppo_epochs=3), max_epochs=2)
    assert 4 <= trainer.global_step < 12
    assert recorder.metrics[-1]["update/early_stop"] == 12 - trainer.global_step
    assert "update/skipped" not in recorder.metrics[-1], "ending early is no fault"


def test_validation_logs_and_saves_every_answer(world, tmp_path) -> None:
    import json

    class Zero(Reward):
        def score(self, request):
            return RewardOutput(scores=torch.tensor([float(r["id"]) for r in request.records]))

    module = make_ppo(world, eval_rewards={"gold": Zero()})
    trainer = make_trainer(tmp_path)
    results = trainer.validate(module, make_data(world, eval_samples=3, eval_batch_size=5), verbose=False)[0]
    assert results["val/gold"] == pytest.approx((0 + 1 + 2 + 3) / 4)
    assert results["val/kl"] == pytest.approx(0.0, abs=1e-5)
    rows = [json.loads(line) for line in next((tmp_path / "evaluations").glob("val-*.jsonl")).open()]
    assert [(r["sample"], r["row"]) for r in rows] == [(s, i) for s in range(3) for i in range(4)]
    assert {"prompt", "response", "tokens", "ended", "score", "gold", "logprob", "ref_logprob"} <= rows[0].keys()
    again = make_trainer(tmp_path / "b").validate(
        make_ppo(world), make_data(world, eval_samples=3, eval_batch_size=64), verbose=False
    )[0]
    assert again["val/score"] == pytest.approx(results["val/score"], abs=1e-6), "answers depend on the batch size"


def test_predict_gives_rows(world, tmp_path) -> None:
    data = make_data(world, predict=str(world / "prompts.jsonl"))
    batches = make_trainer(tmp_path).predict(make_ppo(world), data)
    rows = [row for batch in batches for row in batch]
    assert len(rows) == 32
    assert isinstance(rows[0]["response"], str)


class Bad(Reward):
    """NaN in the second iteration."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, request):
        self.calls += 1
        scores = torch.zeros(len(request.prompts))
        if self.calls == 2:
            scores[3] = float("nan")
        return RewardOutput(scores=scores)


def test_a_score_that_is_not_finite_stops_and_keeps_the_last_good_state(world, tmp_path) -> None:
    module = make_ppo(world, reward=Bad(), critic=CriticConfig(init="policy"))
    with pytest.raises(NonFiniteError, match=r"iteration 1, step 2: score is not finite.*prompt"):
        fit(world, tmp_path, module=module, data=make_data(world, val=None), max_epochs=4)
    state = torch.load(tmp_path / "checkpoints" / "last_good.ckpt", weights_only=True)
    assert state["global_step"] == 2


def test_or_leaves_the_iteration_out(world, tmp_path) -> None:
    module = make_ppo(world, reward=Bad(), critic=CriticConfig(init="policy"), on_non_finite="skip")
    module, trainer, _ = fit(world, tmp_path, module=module, data=make_data(world, val=None), max_epochs=4)
    assert trainer.global_step == 6
    assert module.skipped_updates == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": GroupNormalized(2), "critic_loss": ClippedValueLoss()}, "needs a critic"),
        ({"reference": None}, r"`reference` \(null\) is needed by the KL penalty"),
        (
            {"reference": None, "kl_controller": FixedKL(0), "loss": LossConfig(old_logprobs="reference")},
            "old_logprobs: reference",
        ),
        ({"reference": None, "kl_controller": AdaptiveKL()}, "always 0"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_construction(world, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_ppo(world, **options)


def test_config_groups_name_argument_rule_and_value() -> None:
    with pytest.raises(ValueError, match=r"`clip` \(-1\) must be positive or null"):
        ShapingConfig(clip=-1)
    with pytest.raises(ValueError, match="excludes `normalize`"):
        ShapingConfig(normalize=True, scale=True)
    with pytest.raises(ValueError, match="needs `entropy_coef`"):
        LossConfig(entropy_clip=30.0)
    with pytest.raises(ValueError, match=r"ptx.files.*must name at least one file"):
        PTXConfig(files=[])
    with pytest.raises(ValueError, match=r"`target_kl` \(0.1\) measures the old policy"):
        LossConfig(old_logprobs="reference", target_kl=0.1)
    with pytest.raises(ValueError, match="fraction, which needs a bounded number of steps"):
        ScheduleConfig(warmup=0.1).factor(0, float("inf"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollout_batch_size": 10, "minibatch_size": 4}, r"`rollout_batch_size` \(10\) must be a multiple of"),
        ({"rollout_batch_size": 64, "minibatch_size": 8}, "needs 64 distinct prompts"),
        ({"train": "nowhere.jsonl"}, "nowhere.jsonl"),
    ],
)
def test_bad_data_options_are_refused_before_models_load(world, tmp_path, options, message) -> None:
    module = make_ppo(world)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_trainer(tmp_path).fit(module, make_data(world, **options))
    assert module.policy is None


class NaNValues(PPOModule):
    """A critic that says NaN in the second iteration."""

    def score_rollout(self, rollout, micro_batches):
        scored, entropy = super().score_rollout(rollout, micro_batches)
        if self.iteration == 1:
            scored.old_values[0, 0] = float("nan")
        return scored, entropy


def test_values_that_are_not_finite_stop_or_leave_the_iteration_out(world, tmp_path) -> None:
    module = make_ppo(world, kind=NaNValues)
    with pytest.raises(NonFiniteError, match="iteration 1, step 2: old_values is not finite"):
        fit(world, tmp_path / "stop", module=module, data=make_data(world, val=None), max_epochs=3)
    module = make_ppo(world, kind=NaNValues, on_non_finite="skip")
    module, trainer, _ = fit(world, tmp_path / "skip", module=module, data=make_data(world, val=None), max_epochs=3)
    assert trainer.global_step == 4
    assert module.skipped_updates == 2
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_a_loss_that_is_not_finite_names_the_prompts(world, tmp_path) -> None:
    class Explodes(PPOModule):
        def policy_token_loss(self, *columns):
            loss, clipped = super().policy_token_loss(*columns)
            return loss * float("nan"), clipped

    with pytest.raises(NonFiniteError, match=r"iteration 0, step 0: loss is not finite\. Prompts of rank 0 begin with"):
        fit(world, tmp_path, module=make_ppo(world, kind=Explodes), data=make_data(world, val=None), max_epochs=1)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_correction_of_the_sampler_needs_an_engine_that_gives_log_probabilities(world, level) -> None:
    with pytest.raises(ValueError, match=rf"`loss.sampler_correction` \({level}\) needs an engine with"):
        make_ppo(world, loss=LossConfig(sampler_correction=level))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"sampler_correction": "all"}, r"sampler_correction.*all"),
        ({"sampler_cap": 0.5}, r"sampler_cap.*0\.5.*at least 1"),
        ({"sampler_correction": "token", "old_logprobs": "sampler"}, r"sampler_correction.*token.*rollout"),
    ],
)
def test_corrections_that_mean_nothing_are_refused(options, error) -> None:
    with pytest.raises(ValueError, match=error):
        LossConfig(**options)


def test_sampler_logprobs_need_an_engine_that_gives_them(world) -> None:
    with pytest.raises(ValueError, match="needs an engine with"):
        make_ppo(world, loss=LossConfig(old_logprobs="sampler"))


class Explodes(PPOModule):
    """The loss is NaN from the second update on, or from the first."""

    after = 1

    def policy_token_loss(self, *columns):
        loss, clipped = super().policy_token_loss(*columns)
        return loss * (float("nan") if self.global_step >= self.after else 1.0), clipped


def test_a_run_that_skips_everything_ends_with_a_failure(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lit_rlhf.modules.base.MOST_SKIPPED", 5)
    module = make_ppo(world, kind=Explodes, on_non_finite="skip")
    with pytest.raises(NonFiniteError, match=r"step 1: 5 updates in a row were skipped"):
        fit(world, tmp_path, module=module, data=make_data(world, val=None), max_epochs=9)
    assert module.skipped_updates == 5


def test_a_short_run_without_one_update_fails_as_well(world, tmp_path) -> None:
    module = make_ppo(world, kind=Explodes, on_non_finite="skip")
    module.after = 0
    with pytest.raises(NonFiniteError, match="None of the 4 updates was made"):
        fit(world, tmp_path, module=module, data=make_data(world, val=None), max_epochs=2)


def test_skipped_updates_in_a_row_are_counted_over_a_resume(world, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("lit_rlhf.modules.base.MOST_SKIPPED", 5)
    module = make_ppo(world, kind=Explodes, on_non_finite="skip")
    _, trainer, _ = fit(world, tmp_path, module=module, data=make_data(world, val=None), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    resumed = make_ppo(world, kind=Explodes, on_non_finite="skip")
    with pytest.raises(NonFiniteError, match="5 updates in a row"):
        make_trainer(tmp_path, max_epochs=9).fit(
            resumed, make_data(world, val=None), ckpt_path=str(tmp_path / "three.ckpt"), weights_only=True
        )
    assert resumed.skipped_updates == 5


@pytest.mark.parametrize(
    ("longest", "priced", "told"), [(2, "", 1), (200, "", 0), (2, "by the shaping", 0), (2, "by the reward", 0)]
)
def test_many_cut_responses_are_said_once_with_what_to_do(world, tmp_path, longest, priced, told, recwarn):
    class Ending(PPOModule):
        """Ends every response at its second token where there is room for more."""

        def generate(self, prompts, uniforms, sampling):
            rollout = super().generate(prompts, uniforms, sampling)
            ended = torch.full_like(rollout.ended, longest > 2)
            return dataclasses.replace(rollout, ended=ended)

    options = {"sampling": SamplingConfig(max_response_length=min(longest, 10))}
    if priced == "by the shaping":
        options["shaping"] = ShapingConfig(missing_eos_penalty=0.0)
    if priced == "by the reward":
        options["reward"] = LengthReward(
            MissingEOSReward(ModelReward(str(world / "reward")), penalty=0.0), coef=0.1, longest=9
        )
    module = make_ppo(world, Ending, **options)
    make_trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(module, make_data(world))
    lines = [str(w.message) for w in recwarn if "were cut at" in str(w.message)]
    assert len(lines) == told
    if told:
        assert lines[0].startswith(
            "100% of the responses of iteration 0 were cut at `sampling.max_response_length` (2)"
        )
        assert "`shaping.missing_eos_penalty`" in lines[0]


def test_prose_beside_ppo_stands_behind_its_own_separator(world, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    files = [str(world / "texts.jsonl")]
    cache = TokenCache(use=True, folder=str(tmp_path))  # the separator is part of what is kept
    plain, bare = (
        PTXText(PTXConfig(files=files, max_length=16, separator=separator), tokenizer, cache)._rows
        for separator in (None, "")
    )
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    for i in range(len(plain)):
        assert bare[i].ids.tolist() == [token for token in plain[i].ids.tolist() if token not in marks]
    assert len(bare[0].ids) < len(plain[0].ids)
