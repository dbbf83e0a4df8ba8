"""Samples, progress, best policy, export: what a run leaves behind."""

from __future__ import annotations

import io
import json
import re
import threading
import time

import pytest
import torch

from lit_rlhf.callbacks import BestPolicy, ExportCallback, RLHFProgressBar, SampleLogger
from tests.callbacks.stand_in import StandIn, fit, made_up


class Words:
    """A tokenizer of one method."""

    def decode(self, ids, *, skip_special_tokens=True):
        return "".join(f"w{i} " for i in ids)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_hold_the_columns_of_their_tokens(tmp_path):
    module = StandIn()
    module.tokenizer = Words()
    fit(module, [SampleLogger(fixed=0, random=2, every_n_iterations=2)], tmp_path, epochs=4)
    samples = read(tmp_path / "samples.jsonl")
    assert [(s["step"], s["kind"]) for s in samples] == [(0, "random")] * 2 + [(4, "random")] * 2
    for sample in samples:
        x = made_up(seed=10 * (sample["step"] // 2))
        row, mask = sample["index"], x.response_mask[sample["index"]]
        ids = x.response_ids[row][mask].tolist()
        drift = (x.old_logprobs - x.ref_logprobs)[row][mask]
        assert sample["tokens"] == [f"w{i} " for i in ids]
        assert sample["response"] == "".join(sample["tokens"])
        assert sample["columns"]["kl"] == pytest.approx(drift.tolist(), abs=1e-4)
        assert sample["columns"]["advantage"] == pytest.approx(x.advantages[row][mask].tolist(), abs=1e-4)
        assert sample["columns"]["value"] == pytest.approx(x.old_values[row][mask].tolist(), abs=1e-4)
        assert sample["kl"] == pytest.approx(float(drift.mean()), abs=1e-5)
        assert sample["kl_sequence"] == pytest.approx(float(drift.sum()), abs=1e-5)
        assert sample["score"] == pytest.approx(float(x.scores[row]))


def test_fixed_samples_are_the_first_held_out_rows_from_the_sanity_check_on(tmp_path):
    run = {"limit_val_batches": 2, "num_sanity_val_steps": 2}
    fit(StandIn(), [SampleLogger(fixed=4, random=0)], tmp_path, epochs=2, **run)
    samples = read(tmp_path / "samples.jsonl")
    assert [(s["step"], s["index"]) for s in samples] == [(step, k) for step in (0, 2, 4) for k in range(4)]
    assert samples[3]["score"] == samples[7]["score"] == pytest.approx(float(made_up(rows=3, seed=1).scores[0]))


def test_sample_draws_resume(tmp_path):
    fit(StandIn(), [SampleLogger(every_n_iterations=1)], tmp_path / "a", epochs=4)
    half = fit(StandIn(), [SampleLogger(every_n_iterations=1)], tmp_path / "b", epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    fit(StandIn(), [SampleLogger(every_n_iterations=1)], tmp_path / "b", epochs=4, ckpt=str(tmp_path / "half.ckpt"))
    assert read(tmp_path / "a/samples.jsonl") == read(tmp_path / "b/samples.jsonl")


def test_samples_without_a_reference_have_no_kl(tmp_path):
    class Alone(StandIn):
        def rollout(self):
            x = super().rollout()
            x.ref_logprobs = None
            return x

    fit(Alone(), [SampleLogger(fixed=0, random=2)], tmp_path, epochs=1)
    for sample in read(tmp_path / "samples.jsonl"):
        assert sample["kl"] is sample["kl_sequence"] is None
        assert set(sample["columns"]) == {"logprob", "advantage", "value"}


class Scripted(StandIn):
    """Held-out score and KL by epoch."""

    script = ((1.0, 0.02), (3.0, 0.30), (2.0, 0.05), (2.5, float("nan")), (1.5, 0.01))

    def on_validation_epoch_start(self):
        self.val_score, self.val_kl = self.script[self.trainer.current_epoch]


def test_best_policy_is_the_best_under_the_bound(tmp_path):
    best, export = BestPolicy(kl_bound=0.1, dirpath=str(tmp_path / "ckpt")), ExportCallback(best=True)
    module = Scripted()
    run = {"enable_checkpointing": True, "limit_val_batches": 1}
    fit(module, [best, export], tmp_path, epochs=5, **run)
    assert float(best.best_model_score) == 2.0
    assert [p.name for p in (tmp_path / "ckpt").iterdir()] == ["best-epoch=2-step=6.ckpt"]
    assert module.exports == ["best", "best", "final"]


def test_export_happens_before_the_best_weights_move(tmp_path):
    class Keeping(Scripted):
        script = ((1.0, 0.0), (2.0, 0.0), (0.0, 0.0))

        def export(self, path):
            super().export(path)
            self.kept = {k: v.clone() for k, v in self.state_dict().items()}

    module, best = Keeping(), BestPolicy(dirpath=str(tmp_path / "ckpt"))
    run = {"enable_checkpointing": True, "limit_val_batches": 1}
    fit(module, [best, ExportCallback(best=True, final=False)], tmp_path, epochs=3, **run)
    saved = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[k], module.kept[k]) for k in saved)


def test_best_policy_and_export_refuse_what_they_cannot_do(tmp_path):
    with pytest.raises(ValueError, match=r"`kl_bound` \(0\)"):
        BestPolicy(kl_bound=0)
    run = {"enable_checkpointing": True, "limit_val_batches": 1}
    with pytest.raises(ValueError, match=r"'val/kll'.*'val/kl'"):
        fit(Scripted(), [BestPolicy(kl_name="val/kll")], tmp_path, **run)
    with pytest.raises(ValueError, match="needs a `BestPolicy`"):
        fit(StandIn(), [ExportCallback(best=True)], tmp_path)
    module = StandIn()
    module.export = None
    with pytest.raises(ValueError, match=r"needs `StandIn.export\(path\)`"):
        fit(module, [ExportCallback()], tmp_path)


def test_fixed_samples_without_a_validation_are_said_to_be_none(tmp_path, recwarn):
    def said():
        return [w for w in recwarn if "there is none: samples.jsonl" in str(w.message)]

    fit(StandIn(), [SampleLogger(fixed=4)], tmp_path / "a", epochs=1, limit_val_batches=1)
    fit(StandIn(), [SampleLogger(fixed=0)], tmp_path / "b", epochs=1)
    late = {"limit_val_batches": 1, "check_val_every_n_epoch": 2}
    fit(StandIn(), [SampleLogger(fixed=4)], tmp_path / "d", epochs=2, **late)
    assert not said()
    fit(StandIn(), [SampleLogger(fixed=4)], tmp_path / "c", epochs=1)
    assert len(said()) == 1
    fit(StandIn(), [SampleLogger(fixed=5)], tmp_path / "e", epochs=1, **late)  # the same text is recorded once
    assert len(said()) == 2


class Shown(StandIn):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self.log("rollout/score", 0.5, prog_bar=True)  # a monitor that the module wants shown is shown once
        self.log_dict({"rollout/kl": 0.04, "rollout/tokens": 1234.0})
        self.log("accuracy", 0.75, prog_bar=True)


def test_plain_lines_one_an_epoch_when_not_a_terminal(tmp_path, capsys):
    fit(Shown(), [RLHFProgressBar()], tmp_path, epochs=3, enable_progress_bar=True)
    out = capsys.readouterr().out.splitlines()
    lines = [line for line in out if line.startswith("fit ")]
    assert len(lines) == 3
    assert re.fullmatch(r"fit epoch 2/3 step 4/6 score 0.5 kl 0.04 accuracy 0.75 \d+ tok/s \d:\d\d left", lines[1])
    said = [line for line in out if line.startswith("fit:")]
    assert said[0] == "fit: loading models and data"
    assert said[1].startswith("fit: loaded in 0:")
    assert said[2:] == ["fit: first rollout", "fit: first scoring", "fit: first update"]


def test_a_line_comes_by_time_inside_an_epoch_and_while_a_rollout_runs(tmp_path, capsys):
    class Slow(Shown):
        def rollout(self):
            time.sleep(0.5)
            return super().rollout()

    fit(Slow(), [RLHFProgressBar(every_n_seconds=0.15)], tmp_path, epochs=2, enable_progress_bar=True)
    out = capsys.readouterr().out
    ticks = [line for line in out.splitlines() if re.search(r"\((rollout|scoring) for 0:0", line)]
    assert len(ticks) >= 4
    assert ticks[0].startswith("fit epoch 1/2 step 0/4")
    assert "step 2/4 score 0.5" in ticks[-1]
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_a_line_by_time_says_validation_only_while_one_runs(tmp_path, capsys):
    class Supervised(StandIn):
        def train_dataloader(self):
            return torch.randn(4, 4, 3)

        def val_dataloader(self):
            return torch.randn(1, 4, 3)

        def training_step(self, batch, batch_idx):
            time.sleep(0.2)
            super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            time.sleep(0.5)

    bar = RLHFProgressBar(every_n_seconds=0.15)
    more = {"limit_val_batches": 1, "num_sanity_val_steps": 1}
    fit(Supervised(), [bar], tmp_path, epochs=2, enable_progress_bar=True, **more)
    ticks = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fit epoch")]
    assert any("validation for 0:0" in line for line in ticks)
    assert sum("validation" not in line for line in ticks) >= 2 + 4  # the epochs' own lines, and those of training
    assert not [line for line in ticks if "training for" in line]


def test_no_line_by_time_where_none_is_wanted(tmp_path, capsys):
    fit(Shown(), [RLHFProgressBar(every_n_seconds=None)], tmp_path, epochs=1, enable_progress_bar=True)
    assert " for 0:0" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"`every_n_seconds` \(0\)"):
        RLHFProgressBar(every_n_seconds=0)


def test_tokens_per_second_count_the_update(tmp_path):
    class Slow(Shown):
        def training_step(self, batch, batch_idx):
            time.sleep(0.2)
            super().training_step(batch, batch_idx)

    bar = RLHFProgressBar(plain=True)
    fit(Slow(), [bar], tmp_path, epochs=1, enable_progress_bar=True)
    assert 500 < bar._speed.value <= 1234 / 0.4  # two updates


def test_tokens_per_second_of_a_supervised_stage_leave_the_first_step_out(tmp_path, capsys):
    class Supervised(StandIn):
        def train_dataloader(self):
            return torch.randn(4, 4, 3)

        def training_step(self, batch, batch_idx):
            time.sleep(0.6 if batch_idx == 0 else 0.1)
            super().training_step(batch, batch_idx)
            self.log("update/tokens", 100.0)

    bar = RLHFProgressBar(plain=True)
    fit(Supervised(), [bar], tmp_path, epochs=1, enable_progress_bar=True)
    assert 400 < bar._speed.value <= 1000
    assert " tok/s" in capsys.readouterr().out


def test_updates_that_were_left_out_are_neither_awaited_nor_hidden(tmp_path, capsys):
    """`loss.target_kl` ends an epoch's updates: the run is complete at fewer steps than planned."""

    class Stopping(Shown):
        def training_step(self, batch, batch_idx):
            if batch_idx == 0:
                super().training_step(batch, batch_idx)

    fit(Stopping(updates=4), [RLHFProgressBar()], tmp_path, epochs=4, enable_progress_bar=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fit epoch")]
    assert lines[0].startswith("fit epoch 1/4 step 1/16 (3 left out)")
    assert lines[-1].startswith("fit epoch 4/4 step 4/16 (12 left out)")
    assert lines[-1].endswith(" 0:00 left")


def test_a_first_step_that_takes_long_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lit_rlhf.callbacks.progress_bar._LONG", 0.0)
    fit(Shown(), [RLHFProgressBar()], tmp_path, epochs=2, enable_progress_bar=True)
    assert len(re.findall(r"^fit: first step after 0:0\d, caches", capsys.readouterr().out, flags=re.M)) == 1


def test_live_line_shows_the_phases(tmp_path, monkeypatch):
    from rich.console import Console

    from lit_rlhf.callbacks import progress_bar

    out = io.StringIO()
    monkeypatch.setattr(
        progress_bar, "_console", lambda: Console(file=out, force_terminal=True, width=120, color_system=None)
    )
    seen = []

    class Bar(RLHFProgressBar):
        def _refresh(self, trainer):
            super()._refresh(trainer)
            if self._progress:
                seen.append((self._phase, self._progress.tasks[0].completed, self._progress.tasks[0].fields["facts"]))

    fit(Shown(), [Bar()], tmp_path, epochs=2, enable_progress_bar=True)
    phases = [phase for phase, *_ in seen]
    assert phases[:4] == ["rollout", "scoring", "update", "update"]
    assert seen[-1][1] == 4
    assert "score 0.5 kl 0.04" in seen[-1][2]
    assert "score 0.5" in out.getvalue()


def test_disabled_bar_is_silent(tmp_path, capsys):
    bar = RLHFProgressBar()
    bar.disable()
    fit(Shown(), [bar], tmp_path, epochs=1, enable_progress_bar=True)
    assert "fit epoch" not in capsys.readouterr().out
