"""The base class of the callbacks: hooks that exist, and state that is found again."""

from __future__ import annotations

import warnings

import lightning as L
import pytest
import torch

from lit_rlhf import callbacks
from lit_rlhf.callbacks import BestPolicy, CollapseDetector, CriticWarmup, RolloutCallback, RuleConfig, SampleLogger
from tests.callbacks.stand_in import StandIn, fit


class Listener(RolloutCallback):
    def __init__(self):
        self.heard = []

    def on_rollout_end(self, trainer, pl_module, experience):
        self.heard.append(len(experience.scores))

    def on_validation_rollout(self, trainer, pl_module, experience):
        self.heard.append("validation")

    def on_phase(self, trainer, pl_module, phase):
        assert pl_module.phase == phase
        self.heard.append(phase)


class Duck(L.Callback):
    """Not ours, and only one of the hooks."""

    phases = ()

    def on_phase(self, trainer, pl_module, phase):
        self.phases = (*self.phases, phase)


class Deaf(RolloutCallback):
    """Overrides none of them."""


def test_every_hook_is_called_and_ducks_are_served_as_well(tmp_path):
    listener, duck = Listener(), Duck()
    fit(StandIn(), [Deaf(), listener, duck], tmp_path, epochs=1, limit_val_batches=1)
    assert listener.heard == ["rollout", "scoring", 8, "update", "validation"]
    assert duck.phases == ("rollout", "scoring", "update")


class Silent(StandIn):
    """Somebody's module that trains and tells nobody of its rollouts."""

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(4, 3))


def test_who_waits_for_rollouts_and_sees_none_says_so(tmp_path):
    told = r"`Listener` has seen no rollout: Silent never called `lit_rlhf.callbacks.emit_rollout`"
    with pytest.warns(UserWarning, match=told) as found:
        fit(Silent(), [Deaf(), Listener()], tmp_path, epochs=1, limit_val_batches=0)
    assert not any("Deaf" in str(warning.message) for warning in found)


def test_who_sees_some_says_nothing(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*has seen no rollout.*")
        fit(StandIn(), [Listener()], tmp_path, epochs=1, limit_val_batches=0)


def test_every_callback_with_a_hook_has_the_base():
    classes = [getattr(callbacks, name) for name in callbacks.__all__]
    hooks = ("on_rollout_end", "on_validation_rollout", "on_phase")
    hooked = [c for c in classes if isinstance(c, type) and any(hasattr(c, hook) for hook in hooks)]
    assert len(hooked) >= 11
    assert not [c.__name__ for c in hooked if not issubclass(c, RolloutCallback)]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("on_rollout_finished", "on_rollout_end"),
        ("on_rollout", "on_rollout_end"),
        ("on_validation_rollouts", "on_validation_rollout"),
        ("on_phases", "on_phase"),
        ("on_train_bacth_end", "on_train_batch_end"),
    ],
)
def test_a_misspelt_hook_is_refused_when_the_class_is_defined(name, meant):
    with pytest.raises(TypeError, match=rf"`Typo.{name}` is no hook: did you mean `{meant}`\?"):
        type("Typo", (RolloutCallback,), {name: lambda *args: None, "__qualname__": "Typo"})


def test_other_names_are_the_subclasss_own():
    class Fine(Listener):
        on_purpose = "a string"
        on_rollout_ended_count = 3

        def on_tokens(self):
            return 1

        def on_rollout_end(self, trainer, pl_module, experience):
            super().on_rollout_end(trainer, pl_module, experience)

    assert Fine().on_tokens() == 1


def two_of_each():
    stop = CollapseDetector("stop", rule=RuleConfig(threshold=0.5))
    return {
        "every": SampleLogger(fixed=0, random=1, every_n_iterations=1),
        "rarely": SampleLogger(fixed=0, random=3, every_n_iterations=3, seed=1),
        "warn": CollapseDetector(rule=RuleConfig(threshold=0.1)),
        "stop": stop,
        "policy": CriticWarmup(iterations=3),
        "critic": CriticWarmup(iterations=1, group="critic"),
    }


def test_two_of_a_kind_with_different_arguments_live_in_one_trainer_and_resume(tmp_path):
    best = [BestPolicy(kl_bound=bound, dirpath=str(tmp_path / "best")) for bound in (0.1, 0.2)]
    straight = two_of_each()
    run = {"enable_checkpointing": True, "limit_val_batches": 1}
    trainer = fit(StandIn(), [*straight.values(), *best], tmp_path / "a", epochs=2, **run)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = two_of_each()
    fit(StandIn(), list(resumed.values()), tmp_path / "b", epochs=2, ckpt=str(tmp_path / "half.ckpt"))
    for name, callback in resumed.items():
        assert callback.state_dict() == straight[name].state_dict(), name
    assert resumed["policy"].active
    assert not resumed["critic"].active
    assert len((tmp_path / "a/samples.jsonl").read_text().splitlines()) == 2 * 1 + 1 * 3


def test_two_with_the_same_arguments_are_still_refused(tmp_path):
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `SampleLogger`"):
        fit(StandIn(), [SampleLogger(), SampleLogger()], tmp_path)


def half_way(tmp_path, *loggers):
    trainer = fit(StandIn(), list(loggers), tmp_path, epochs=2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    return str(tmp_path / "half.ckpt")


def rollouts(tmp_path, ckpt, *loggers):
    """Rollouts counted by each logger after two more epochs."""
    fit(StandIn(), list(loggers), tmp_path, epochs=4, ckpt=ckpt)
    return [logger.state_dict()["rollouts"] for logger in loggers]


def test_state_survives_a_changed_argument_where_nobody_else_claims_it(tmp_path):
    ckpt = half_way(tmp_path, SampleLogger(random=1))
    assert rollouts(tmp_path, ckpt, SampleLogger(random=2)) == [4]
    assert rollouts(tmp_path, ckpt, SampleLogger(random=1), SampleLogger(random=2)) == [4, 2]


def test_of_two_states_only_the_one_left_over_is_taken(tmp_path):
    ckpt = half_way(tmp_path, SampleLogger(random=1), SampleLogger(random=2))
    assert rollouts(tmp_path, ckpt, SampleLogger(random=2), SampleLogger(random=3)) == [4, 4]
    assert rollouts(tmp_path, ckpt, SampleLogger(random=3)) == [2], "either state could be meant"


def test_a_callback_that_finds_its_own_state_takes_no_other(tmp_path):
    class Counting(SampleLogger):
        loads = 0

        def load_state_dict(self, state_dict):
            self.loads += 1
            super().load_state_dict(state_dict)

    ckpt = half_way(tmp_path, Counting(random=1), Counting(random=2))
    again = Counting(random=2)
    assert rollouts(tmp_path, ckpt, again) == [4]
    assert again.loads == 1


def test_a_detector_keeps_its_baseline_when_its_action_is_changed(tmp_path):
    first = CollapseDetector(rule=RuleConfig(baseline_iterations=2))
    ckpt = half_way(tmp_path, first)
    second = CollapseDetector("stop", rule=RuleConfig(baseline_iterations=2, threshold=1.0))
    fit(StandIn(), [second], tmp_path, epochs=2, ckpt=ckpt)
    assert second.state_dict() == first.state_dict()
    assert len(second.state_dict()["rule"]["_first"]["kl"]) == 2
