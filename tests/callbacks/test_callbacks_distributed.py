"""Two gloo processes, one launch, many checks: every rank sees the same numbers and takes the same decisions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.callbacks.stand_in import Columns, made_up
from tests.callbacks.test_monitors import expected

SCRIPT = """
import hashlib, json, os, sys
sys.path[:0] = {paths!r}
import torch
from lightning.pytorch.strategies import DDPStrategy
from tests.callbacks.stand_in import StandIn, fit, made_up
from lit_rlhf.callbacks import *
from lit_rlhf.callbacks import CollapseDetector, CriticWarmup, RuleConfig, SampleLogger
from tests.callbacks.test_monitors import all_monitors

class Uneven(StandIn):
    def rollout(self):
        late, rank = self.trainer.current_epoch >= 4, self.global_rank
        # Only rank 1 drifts: a rank that judged its own rows alone would decide otherwise.
        drift = 3.0 if late and rank == 1 else 0.02
        seed = 10 * self.trainer.current_epoch + rank
        return made_up(rows=8 + 4 * rank, width=12 if late else 6, seed=seed, drift=drift)

detector = CollapseDetector("stop", rule=RuleConfig(baseline_iterations=3, smoothing=1))
warmup = CriticWarmup(iterations=2, value_loss=-1.0)
module = Uneven()
start = module.policy.weight.detach().clone()
class Still(CriticWarmup):
    moved = []
    def on_train_epoch_end(self, trainer, pl_module):
        self.moved.append(not torch.equal(start, pl_module.policy.weight))
warmup = Still(iterations=2)
strategy = DDPStrategy(process_group_backend="gloo")
monitors = all_monitors()
callbacks = [*monitors, detector, warmup, SampleLogger(every_n_iterations=1)]
trainer = fit(module, callbacks, {out!r}, epochs=9, devices=2, strategy=strategy)
result = {{
    "metrics": {{k: float(v) for k, v in trainer.callback_metrics.items() if "monitor/" in k}},
    "step": trainer.global_step,
    "flags": detector.flags,
    "moved": warmup.moved,
    "policy": hashlib.sha256(module.policy.weight.detach().numpy().tobytes()).hexdigest(),
}}
with open(os.path.join({out!r}, f"rank{{trainer.global_rank}}.json"), "w") as file:
    json.dump(result, file)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    out = tmp_path_factory.mktemp("two_ranks")
    here = Path(__file__).parent
    script = out / "script.py"
    script.write_text(SCRIPT.format(paths=[str(here.parents[1])], out=str(out)))
    scrubbed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
    env = {k: v for k, v in os.environ.items() if k not in scrubbed} | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    job = subprocess.Popen(
        [sys.executable, str(script)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        output = job.communicate(timeout=240)[0].decode()
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 0, output
    return out, [json.loads((out / f"rank{k}.json").read_text()) for k in (0, 1)]


@pytest.mark.distributed
def test_all_numbers_and_decisions_are_equal_on_both_ranks(ranks):
    _, (zero, one) = ranks
    assert zero == one


@pytest.mark.distributed
def test_the_numbers_are_those_of_the_joined_rows(ranks):
    _, (zero, _) = ranks
    parts = [made_up(rows=8 + 4 * r, width=12, seed=50 + r, drift=(0.02, 3.0)[r]) for r in (0, 1)]
    joined = Columns(**{k: torch.cat([getattr(p, k) for p in parts]) for k in vars(parts[0])})
    for name, value in expected(joined).items():
        assert zero["metrics"][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


@pytest.mark.distributed
def test_both_ranks_stop_at_the_same_step_for_a_drift_on_one(ranks):
    _, (zero, _) = ranks
    assert zero["step"] == 11
    assert [(f["iteration"], f["since"]) for f in zero["flags"]] == [(10, 8)]


@pytest.mark.distributed
def test_files_are_written_once(ranks):
    out, _ = ranks
    assert len((out / "collapse.jsonl").read_text().splitlines()) == 1
    assert len((out / "reward_histograms.jsonl").read_text().splitlines()) == 6
    assert len((out / "samples.jsonl").read_text().splitlines()) == 24


@pytest.mark.distributed
def test_the_policy_is_held_on_both_ranks(ranks):
    _, (zero, _) = ranks
    assert zero["moved"] == [False, False, True, True, True, True]
