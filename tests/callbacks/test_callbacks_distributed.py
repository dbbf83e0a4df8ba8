"""Two gloo processes, one launch a strategy, many checks: every rank sees the same numbers and decides alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.callbacks.stand_in import Columns, made_up
from tests.callbacks.test_monitors import expected
from tests.distributed_harness import Launch, run_dist

STRATEGIES = {
    "ddp": """
from lightning.pytorch.strategies import DDPStrategy
make = lambda: DDPStrategy(process_group_backend="gloo")
""",
    "zero2": """
from lit_rlhf.strategies import CPUZeroStrategy
make = CPUZeroStrategy
""",
}
BODY = """
import hashlib
from lightning.pytorch.callbacks import ModelCheckpoint
from lit_rlhf.callbacks import CollapseDetector, CriticWarmup, RuleConfig, SampleLogger
from tests.callbacks.stand_in import StandIn, fit, made_up
from tests.callbacks.test_monitors import all_monitors
{strategy}

class Uneven(StandIn):
    def rollout(self):
        # Only rank 1 drifts: a rank that judged its own rows alone would decide otherwise.
        late, rank = self.trainer.current_epoch >= 4, self.global_rank
        seed, drift = 10 * self.trainer.current_epoch + rank, 3.0 if late and rank == 1 else 0.02
        return made_up(rows=8 + 4 * rank, width=12 if late else 6, seed=seed, drift=drift)

class Watch(CriticWarmup):
    def on_train_epoch_start(self, trainer, pl_module):
        state = pl_module.policy.state_dict()
        text = b"".join(value.float().numpy().tobytes() for value in state.values())
        self.hashes = [*getattr(self, "hashes", []), hashlib.sha256(text).hexdigest()]

rule = RuleConfig(baseline_iterations=3)
detector, watch = CollapseDetector("stop", rule=rule), Watch(iterations=2)
callbacks = [*all_monitors(), detector, watch, SampleLogger(every_n_iterations=1)]
trainer = fit(Uneven(), callbacks, {out!r} + "/stop", epochs=9, devices=2, strategy=make())
metrics = {{k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("rollout/", "monitor/"))}}
record(metrics=metrics, step=trainer.global_step, flags=detector.flags, hashes=watch.hashes)

keep = ModelCheckpoint(dirpath={out!r} + "/ckpt", save_top_k=-1, save_on_train_epoch_end=True)
back, watch, module = CollapseDetector("rollback", rule=rule), Watch(iterations=0), Uneven()
callbacks = [keep, back, watch]
trainer = fit(module, callbacks, {out!r}, epochs=8, devices=2, strategy=make(), enable_checkpointing=True)
record(back=watch.hashes, did=[flag["did"] for flag in back.flags], kl=module.kl_controller.value)
"""


@pytest.fixture(scope="module", params=list(STRATEGIES))
def launch(request, tmp_path_factory) -> tuple[Path, Launch]:
    out = tmp_path_factory.mktemp(request.param)
    return out, run_dist(BODY.format(out=str(out), strategy=STRATEGIES[request.param]), out)


pytestmark = pytest.mark.distributed


def test_all_numbers_and_decisions_are_equal_on_both_ranks(launch):
    zero, one = launch[1].ranks
    assert zero == one
    assert len(zero["metrics"]) > 15


def test_the_numbers_are_those_of_the_joined_rows(launch):
    parts = [made_up(rows=8 + 4 * r, width=12, seed=50 + r, drift=(0.02, 3.0)[r]) for r in (0, 1)]
    joined = Columns(**{k: torch.cat([getattr(p, k) for p in parts]) for k in vars(parts[0])})
    for name, value in expected(joined).items():
        assert launch[1].ranks[0]["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_both_ranks_stop_at_the_same_step_for_a_drift_on_one(launch):
    zero = launch[1].ranks[0]
    assert zero["step"] == 11
    assert [(f["iteration"], f["since"]) for f in zero["flags"]] == [(10, 8)]


def test_files_are_written_once(launch):
    def count(name):
        return len((launch[0] / "stop" / name).read_text().splitlines())

    assert (count("collapse.jsonl"), count("reward_histograms.jsonl"), count("samples.jsonl")) == (1, 6, 24)


def test_the_policy_is_held_bitwise_and_then_moves(launch):
    hashes = launch[1].ranks[0]["hashes"]  # at the start of each epoch; the first two train the critic only
    assert hashes[0] == hashes[1] == hashes[2]
    assert len(set(hashes[2:])) == len(hashes) - 2


def test_rollback_restores_the_weights_of_before_the_onset_on_both_ranks(launch):
    zero = launch[1].ranks[0]
    assert zero["did"] == ["Rolls back to epoch=2-step=6.ckpt at the end of the epoch, kl_coef times 2."]
    assert zero["back"][6] == zero["back"][3] != zero["back"][5]
    assert zero["kl"] == pytest.approx(0.2)
