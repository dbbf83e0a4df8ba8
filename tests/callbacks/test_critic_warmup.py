"""The policy is held bit for bit, and let go with warm moments and the scheduler's own rate."""

from __future__ import annotations

import copy

import pytest
import torch

from lit_rlhf.callbacks import CriticWarmup
from tests.callbacks.stand_in import StandIn, fit


def weights(module):
    return copy.deepcopy(module.policy.state_dict()), copy.deepcopy(module.critic.state_dict())


def same(a, b):
    return all(torch.equal(a[k], b[k]) for k in a)


class Recorder(CriticWarmup):
    """Keeps, after every update, whether policy and critic differ from the start, and the two rates."""

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.first = weights(pl_module)
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        now = weights(pl_module)
        rates = [g["lr"] for g in trainer.optimizers[0].param_groups]
        self.seen.append((same(self.first[0], now[0]), same(self.first[1], now[1]), *rates))


def test_policy_is_bitwise_still_for_n_iterations_and_then_moves(tmp_path):
    warmup = Recorder(iterations=2)
    fit(StandIn(updates=2, weight_decay=0.5), [warmup], tmp_path, epochs=3)
    assert [still for still, *_ in warmup.seen] == [True] * 4 + [False] * 2
    assert not any(critic_still for _, critic_still, *_ in warmup.seen)


def test_a_recursive_scheduler_never_sees_the_zero(tmp_path):
    warmup = Recorder(iterations=2)
    fit(StandIn(updates=2), [warmup], tmp_path, epochs=3)
    for k, (_, _, policy, critic) in enumerate(warmup.seen):
        assert policy == pytest.approx(1e-2 * 0.9 ** (k + 1))
        assert policy == critic


def test_moments_are_warm_when_the_policy_is_let_go(tmp_path):
    module = StandIn(updates=2)
    trainer = fit(module, [CriticWarmup(iterations=3)], tmp_path, epochs=3)
    state = trainer.optimizers[0].state[module.policy.weight]
    assert int(state["step"]) == 6
    assert float(state["exp_avg"].abs().max()) > 0


@pytest.mark.parametrize(
    ("options", "still"),
    [
        ({"value_loss": 1e9}, [True] * 2 + [False] * 6),  # passed after the first iteration
        ({"value_loss": -1.0}, [True] * 6 + [False] * 2),  # never passed: the limit of 3 iterations holds
        ({"explained_variance": 0.5, "explained_variance_name": "ev"}, [True] * 4 + [False] * 4),
    ],
)
def test_thresholds_end_it_early(tmp_path, options, still):
    class WithVariance(StandIn):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            self.log("ev", 0.3 * (self.trainer.current_epoch + 1))

    warmup = Recorder(iterations=3, **options)
    fit(WithVariance(), [warmup], tmp_path, epochs=4)
    assert [row[0] for row in warmup.seen] == still


def test_resumed_run_equals_the_straight_one(tmp_path):
    straight = StandIn()
    fit(straight, [CriticWarmup(iterations=3)], tmp_path, epochs=5)
    half = fit(StandIn(), [CriticWarmup(iterations=3)], tmp_path, epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, warmup = StandIn(), CriticWarmup(iterations=3)
    fit(resumed, [warmup], tmp_path, epochs=5, ckpt=str(tmp_path / "half.ckpt"))
    assert not warmup.active
    assert same(straight.policy.state_dict(), resumed.policy.state_dict())
    assert same(straight.critic.state_dict(), resumed.critic.state_dict())


def test_zero_wrappers_are_opened_and_one_group_at_a_time_is_held():
    """ZeRO-2 wraps the optimizer and steps it once a group, with `param_groups` swapped."""
    from lit_rlhf.callbacks.critic_warmup import _innermost

    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    inner = torch.optim.AdamW([{"params": [a], "name": "policy"}, {"params": [b], "name": "critic"}], lr=0.1)
    wrapper = type("Zero", (), {"optimizer": inner})()
    assert _innermost(wrapper) is inner
    warmup = CriticWarmup(iterations=1)
    inner.register_step_pre_hook(warmup._hold)
    inner.register_step_post_hook(warmup._release)
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    groups = inner.param_groups
    for group in groups:
        inner.param_groups = [group]
        inner.step()
    inner.param_groups = groups
    assert torch.equal(a, torch.ones(2))
    assert not torch.equal(b, torch.ones(2))
    assert [g["lr"] for g in groups] == [0.1, 0.1]


def test_the_gate_is_taken_off_after_fit(tmp_path):
    trainer = fit(StandIn(), [CriticWarmup(iterations=9)], tmp_path, epochs=1)
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iterations": -1}, "`iterations` \\(-1\\)"),
        ({"explained_variance": 1.5}, "`explained_variance` \\(1.5\\)"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        CriticWarmup(**options)


def test_missing_group_and_missing_metric_say_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"'actor'.*\['policy', 'critic'\]"):
        fit(StandIn(), [CriticWarmup(group="actor")], tmp_path)
    with pytest.raises(ValueError, match=r"'update/explained_variance'.*'loss/value'"):
        fit(StandIn(), [CriticWarmup(explained_variance=0.5)], tmp_path)
