"""The detector in a trainer whose module is not ours: what it sees, what it does, that it resumes."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_rlhf.callbacks import CollapseDetector, RuleConfig
from tests.callbacks.stand_in import StandIn, fit, made_up

RULE = RuleConfig(baseline_iterations=3, smoothing=1, patience=2)
ONSET = 5


class Collapsing(StandIn):
    """Quiet for five iterations, then far from the reference and twice as long."""

    def rollout(self):
        late = self.trainer.current_epoch >= ONSET
        return made_up(rows=64, width=12 if late else 6, drift=1.5 if late else 0.02, seed=self.trainer.current_epoch)


def events(path):
    return [json.loads(line) for line in (path / "collapse.jsonl").read_text().splitlines()]


def test_it_tells_what_fired_since_when_and_what_it_did(tmp_path):
    trainer = fit(Collapsing(), [CollapseDetector(rule=RULE)], tmp_path, epochs=10)
    (event,) = events(tmp_path)
    assert (event["iteration"], event["since"], event["step"]) == (12, 10, 12)  # two updates an iteration
    assert event["fired"][:2] == ["kl", "length"]
    assert event["readings"]["length"]["value"] > 1.5 * event["readings"]["length"]["baseline"]
    assert event["did"] == "Only warned."
    assert trainer.global_step == 20
    assert float(trainer.callback_metrics["monitor/collapse/index"]) > 0.15


def test_the_rule_may_be_a_dict():
    assert CollapseDetector(rule={"threshold": 2.0}).rule.config == RuleConfig(threshold=2.0)
    assert CollapseDetector().rule.config == RuleConfig()
    with pytest.raises(ValueError, match=r"`rule` has no option `treshold`. Did you mean `threshold`?"):
        CollapseDetector(rule={"treshold": 2.0})


def test_stop(tmp_path):
    trainer = fit(Collapsing(), [CollapseDetector("stop", rule=RULE)], tmp_path, epochs=10)
    assert trainer.global_step == 13


def test_raise_kl(tmp_path):
    module = Collapsing()
    fit(module, [CollapseDetector("raise_kl", rule=RULE, kl_factor=3.0)], tmp_path, epochs=10)
    assert module.kl_controller.value == pytest.approx(0.3)
    assert events(tmp_path)[0]["did"] == "Raised kl_coef from 0.1 to 0.3."


def test_rollback_restores_weights_and_optimizer_from_before_the_onset(tmp_path):
    class Watching(Collapsing):
        def on_train_epoch_start(self):
            optimizer = self.trainer.optimizers[0]
            self.at = {**getattr(self, "at", {}), self.trainer.current_epoch: self.snapshot(optimizer)}

        def snapshot(self, optimizer):
            moments = optimizer.state[self.policy.weight]["exp_avg"].clone() if optimizer.state else torch.zeros(0)
            return self.policy.weight.detach().clone(), moments

    module = Watching()
    keep = ModelCheckpoint(dirpath=str(tmp_path / "ckpt"), every_n_epochs=2, save_top_k=-1)
    detector = CollapseDetector("rollback", rule=RULE, kl_factor=2.0)
    trainer = fit(module, [keep, detector], tmp_path, epochs=8, enable_checkpointing=True)
    # Checkpoints at steps 4, 8 and 12; the onset is step 10; the flag comes in epoch 6.
    assert "epoch=3-step=8.ckpt" in events(tmp_path)[0]["did"]
    for then, now in zip(module.at[4], module.at[7], strict=True):
        assert torch.equal(then, now)
    assert not torch.equal(module.at[6][0], module.at[7][0])
    assert module.kl_controller.value == pytest.approx(0.2)
    assert trainer.global_step == 16  # the loops went on
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(1e-2 * 0.9**16)  # and so did the schedule


def test_rollback_without_a_checkpoint_stops_and_says_so(tmp_path):
    trainer = fit(Collapsing(), [CollapseDetector("rollback", rule=RULE)], tmp_path, epochs=10)
    assert trainer.global_step == 13
    assert "No checkpoint from before iteration 10" in events(tmp_path)[0]["did"]


def test_state_resumes(tmp_path):
    straight = CollapseDetector(rule=RULE)
    fit(Collapsing(), [straight], tmp_path / "a", epochs=8)
    half = fit(Collapsing(), [CollapseDetector(rule=RULE)], tmp_path / "b", epochs=6)  # between onset and flag
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed = CollapseDetector(rule=RULE)
    fit(Collapsing(), [resumed], tmp_path / "b", epochs=8, ckpt=str(tmp_path / "half.ckpt"))
    assert resumed.state_dict() == straight.state_dict()
    assert events(tmp_path / "a") == events(tmp_path / "b")


def test_named_metrics_serve_a_module_without_rollouts(tmp_path):
    class Plain(StandIn):
        def train_dataloader(self):
            return torch.randn(2, 4, 3)

        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            late = self.trainer.current_epoch >= ONSET
            self.log_dict({"my/kl": 0.3 if late else 0.0, "my/len": 30.0 if late else 15.0})

    names = {"kl": "my/kl", "length": "my/len"}
    fit(Plain(), [CollapseDetector(rule=RULE, metric_names=names)], tmp_path, epochs=9)
    assert [(e["iteration"], e["since"]) for e in events(tmp_path)] == [(6, 5)]


def test_what_the_module_knows_is_judged_and_the_rest_measured(tmp_path):
    """KL and length are the module's; the repetition is seen in the responses themselves."""

    class Knows(StandIn):
        def rollout(self):
            late = self.trainer.current_epoch >= ONSET
            self.rollout_metrics = {"rollout/kl": 0.3 if late else 0.0, "rollout/response_length": 15.0}
            x = made_up(rows=64, seed=self.trainer.current_epoch, drift=0.0)
            if late:
                x.response_ids[:] = x.response_ids[0]
            return x

    fit(Knows(), [CollapseDetector(rule=RULE)], tmp_path, epochs=9)
    (event,) = events(tmp_path)
    assert (event["iteration"], event["since"], event["fired"]) == (12, 10, ["kl", "distinct", "variety"])
    assert event["readings"]["kl"]["value"] == 0.3


def test_a_short_answer_to_every_prompt_is_seen(tmp_path):
    """Two tokens, always the same: no 4-gram. Several responses to one prompt may be equal without harm."""

    class Short(StandIn):
        def __init__(self, prompts):
            super().__init__()
            self.prompts = prompts

        def rollout(self):
            late = self.trainer.current_epoch >= ONSET
            self.rollout_metrics = {"rollout/kl": 0.3 if late else 0.0, "rollout/response_length": 2.0}
            self.rollout_metrics["rollout/perplexity"] = 2.0
            x = made_up(rows=32, width=2, seed=self.trainer.current_epoch, drift=0.0)
            if late:
                x.response_ids[:], x.response_mask[:] = 7, True
            x.prompt_ids, x.prompt_mask = self.prompts[:, None], torch.ones(32, 1, dtype=torch.bool)
            return x

    fit(Short(torch.arange(32)), [CollapseDetector(rule=RULE)], tmp_path / "many", epochs=9)
    (event,) = events(tmp_path / "many")
    assert (event["iteration"], event["since"], event["fired"]) == (12, 10, ["kl", "variety"])
    assert event["readings"]["variety"]["value"] == 0
    fit(Short(torch.zeros(32, dtype=torch.int64)), [CollapseDetector(rule=RULE)], tmp_path / "one", epochs=9)
    assert not (tmp_path / "one" / "collapse.jsonl").exists()


def test_without_reference_and_kl_there_is_nothing_to_judge(tmp_path):
    class Alone(StandIn):
        def rollout(self):
            x = made_up()
            x.ref_logprobs = None
            return x

    with pytest.raises(ValueError, match="`CollapseDetector` needs `ref_logprobs` or the module's own 'rollout/kl'"):
        fit(Alone(), [CollapseDetector()], tmp_path)


def test_equal_scores_are_no_fault(tmp_path):
    class Flat(StandIn):
        def rollout(self):
            x = made_up(rows=16, seed=self.trainer.current_epoch, drift=0.01)
            x.scores.zero_()
            return x

    fit(Flat(), [CollapseDetector(rule=RULE)], tmp_path, epochs=8)
    assert not (tmp_path / "collapse.jsonl").exists()


def test_non_finite_logprobs_are_flagged(tmp_path):
    class Broken(StandIn):
        def rollout(self):
            x = made_up(seed=self.trainer.current_epoch)
            if self.trainer.current_epoch >= ONSET:
                x.old_logprobs[0, 0] = float("nan")
            return x

    fit(Broken(), [CollapseDetector("stop", rule=RULE)], tmp_path, epochs=9)
    (event,) = events(tmp_path)
    assert "kl not finite" in event["fired"]
    assert event["index"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"action": "panic"}, "`action` \\('panic'\\)"),
        ({"kl_factor": 0.5}, "`kl_factor` \\(0.5\\)"),
        ({"metric_names": {"length": "x"}}, "`metric_names`"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        CollapseDetector(**options)


def test_a_coefficient_of_zero_cannot_be_raised(tmp_path):
    module = StandIn()
    module.kl_controller.value = 0.0
    with pytest.raises(ValueError, match="no factor raises 0"):
        fit(module, [CollapseDetector("raise_kl")], tmp_path)


def test_a_module_without_controller_is_refused_before_training(tmp_path):
    module = StandIn()
    del module.kl_controller
    with pytest.raises(ValueError, match=r"`action` \('raise_kl'\) needs `StandIn.kl_controller.raise_by"):
        fit(module, [CollapseDetector("raise_kl")], tmp_path)
