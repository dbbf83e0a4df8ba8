"""The monitors against term-by-term sums in Python, in a trainer whose module is not ours."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from typing import ClassVar

import pytest
import torch

from lit_rlhf.callbacks import (
    KLMonitor,
    PerplexityMonitor,
    RepetitionMonitor,
    ResponseLengthMonitor,
    RewardDistributionMonitor,
)
from tests.callbacks.stand_in import StandIn, fit, made_up


def rows(x, column):
    """Masked rows as Python lists."""
    return [
        [v for v, keep in zip(r, m, strict=True) if keep]
        for r, m in zip(getattr(x, column).tolist(), x.response_mask.tolist(), strict=True)
    ]


def overlaps(ids, n):
    """Share of each response's n-grams that each other response has."""
    sets = [{tuple(r[i : i + n]) for i in range(len(r) - n + 1)} or {tuple(r)} for r in ids]
    return [len(a & b) / len(a) for i, a in enumerate(sets) for j, b in enumerate(sets) if i != j]


def expected(x) -> dict[str, float]:
    old, ref, ids = rows(x, "old_logprobs"), rows(x, "ref_logprobs"), rows(x, "response_ids")
    drift = [[a - b for a, b in zip(o, r, strict=True)] for o, r in zip(old, ref, strict=True)]
    flat = [d for row in drift for d in row]
    n = len(flat)
    lengths = sorted(len(r) for r in ids)
    grams = [tuple(r[i : i + 2]) for r in ids for i in range(len(r) - 1)]
    prefixes = Counter(tuple(r[:2]) for r in ids)
    return {
        "rollout/kl": sum(flat) / n,
        "rollout/kl_k3": sum(math.exp(-d) - 1 + d for d in flat) / n,
        "rollout/kl_sequence": sum(map(sum, drift)) / len(drift),
        "rollout/perplexity": math.exp(-sum(map(sum, old)) / n),
        "rollout/ref_perplexity": math.exp(-sum(map(sum, ref)) / n),
        "rollout/response_length": sum(lengths) / len(lengths),
        "rollout/response_length_p90": statistics.quantiles(lengths, n=10, method="inclusive")[-1],
        "rollout/cut_rate": sum(not e for e in x.ended.tolist()) / len(lengths),
        "rollout/distinct_2": len(set(grams)) / len(grams),
        "rollout/prefix_share": max(prefixes.values()) / len(ids),
        "rollout/distinct_responses": len({tuple(r) for r in ids}) / len(ids),
        "rollout/variety": 1 - statistics.fmean(overlaps(ids, 3)),
        "rollout/score_std": statistics.pstdev(x.scores.tolist()),
        "rollout/score": sum(x.scores.tolist()) / len(lengths),
    }


def all_monitors():
    return [
        KLMonitor(),
        PerplexityMonitor(),
        ResponseLengthMonitor(),
        RepetitionMonitor(orders=(1, 2), prefix_length=2),
        RewardDistributionMonitor(),
    ]


def test_every_monitor_logs_the_last_rollout_in_a_foreign_module(tmp_path):
    trainer = fit(StandIn(), all_monitors(), tmp_path, epochs=3)
    want = expected(made_up(seed=20))
    for name, value in want.items():
        assert float(trainer.callback_metrics[name]) == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_a_module_that_samples_inside_training_step_is_served_as_well(tmp_path):
    from lit_rlhf.callbacks import emit_rollout

    class Inside(StandIn):
        def train_dataloader(self):
            return torch.randn(2, 4, 3)

        def training_step(self, batch, batch_idx):
            emit_rollout(self.trainer, self, made_up(seed=batch_idx))
            super().training_step(batch, batch_idx)

    trainer = fit(Inside(), all_monitors(), tmp_path, epochs=1)
    want = expected(made_up(seed=1))
    for name, value in want.items():
        assert float(trainer.callback_metrics[name]) == pytest.approx(value, rel=1e-5, abs=1e-6), name


class Knows(StandIn):
    """A module that logs some of the names itself, and says so before it emits the rollout."""

    own: ClassVar = {"rollout/kl": 7.0, "rollout/cut_rate": 8.0, "rollout/score": 9.0, "rollout/response_length": 10.0}

    def rollout(self):
        self.rollout_metrics = self.own
        return super().rollout()

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self.log_dict(self.rollout_metrics)


def test_names_of_the_modules_own_are_left_to_it_and_the_rest_is_measured(tmp_path):
    trainer = fit(Knows(), all_monitors(), tmp_path, epochs=3)
    for name, value in {**expected(made_up(seed=20)), **Knows.own}.items():
        assert float(trainer.callback_metrics[name]) == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_what_is_known_is_not_even_computed():
    class Counting(KLMonitor):
        asked = 0

        def inputs(self, experience):
            self.asked += 1
            return super().inputs(experience)

    monitor, x = Counting(), made_up()
    names = ("rollout/kl", "rollout/kl_k3", "rollout/kl_sequence")
    assert monitor.measure(x, names) == {}
    assert monitor.asked == 0
    assert monitor.measure(x, names[:2]) == {"rollout/kl_sequence": pytest.approx(expected(x)["rollout/kl_sequence"])}
    assert monitor._metrics["rollout/kl"]._update_count == 0
    assert list(monitor.measure(x)) == list(names)
    lengths = ResponseLengthMonitor().measure(x, {"rollout/response_length"})
    assert list(lengths) == ["rollout/response_length_p90", "rollout/cut_rate"]


def test_each_rollout_is_measured_anew():
    for monitor in all_monitors():
        first, second = (monitor.measure(made_up(seed=seed)) for seed in (0, 1))
        assert monitor.measure(made_up(seed=0)) == first
        assert first.keys() == second.keys()
        assert first != second


def test_without_a_reference_what_needs_one_is_absent(tmp_path):
    class Alone(StandIn):
        def rollout(self):
            x = super().rollout()
            x.ref_logprobs = None
            return x

    trainer = fit(Alone(), all_monitors(), tmp_path, epochs=1)
    with_one = expected(made_up())
    logged = {name for name in with_one if name in trainer.callback_metrics}
    compared = {"rollout/kl", "rollout/kl_k3", "rollout/kl_sequence", "rollout/ref_perplexity"}
    assert logged == with_one.keys() - compared


def test_metrics_of_the_module_that_are_no_mapping_are_refused(tmp_path):
    class Odd(StandIn):
        rollout_metrics = ("rollout/kl",)

    with pytest.raises(TypeError, match=r"`Odd.rollout_metrics` \(tuple\) must be a mapping"):
        fit(Odd(), [KLMonitor()], tmp_path, epochs=1)


def test_histogram_lines_hold_every_score_on_nested_grids(tmp_path):
    module = StandIn()
    for epoch, spread in enumerate((1.0, 1.0, 400.0)):
        module.made[epoch] = made_up(rows=64, seed=epoch)
        module.made[epoch].scores *= spread
    fit(module, [RewardDistributionMonitor(max_bins=40)], tmp_path, epochs=3)
    lines = [json.loads(line) for line in (tmp_path / "reward_histograms.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 2, 4]  # no `iteration` in the module: global steps
    for epoch, line in enumerate(lines):
        scores = module.made[epoch].scores.tolist()
        assert sum(line["counts"]) == 64
        assert len(line["counts"]) <= 41
        assert math.remainder(line["start"], line["width"]) == 0
        k = len(line["counts"]) // 2
        low = line["start"] + k * line["width"]
        assert line["counts"][k] == sum(low <= s < low + line["width"] for s in scores)
    assert lines[2]["width"] > lines[0]["width"]
    assert math.remainder(lines[2]["width"], lines[0]["width"]) == 0


def test_histogram_of_equal_and_of_non_finite_scores():
    monitor = RewardDistributionMonitor()
    assert monitor.histogram(torch.tensor([float("nan")]))["counts"] == []
    assert monitor.histogram(torch.full((5,), 3.0))["counts"] == [5]


def test_distinct_and_prefix_tell_copies_from_variety():
    from lit_rlhf.callbacks.response_metrics import DistinctNgrams, PrefixShare

    mask = torch.ones(4, 5, dtype=torch.bool)
    copies, variety = torch.arange(5).expand(4, 5), torch.arange(20).view(4, 5)
    for ids, distinct, share in ((copies, 0.25, 1.0), (variety, 1.0, 0.25)):
        grams, prefix = DistinctNgrams(2), PrefixShare(3)
        grams.update(ids, mask)
        prefix.update(ids, mask)
        assert float(grams.compute()) == distinct
        assert float(prefix.compute()) == share


def test_garbage_after_the_end_changes_no_count():
    from lit_rlhf.callbacks.response_metrics import DistinctNgrams, PrefixShare

    ids = torch.tensor([[1, 2, 7, 8], [1, 2, 9, 9], [3, 4, 5, 6]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    grams, prefix = DistinctNgrams(2), PrefixShare(3)
    grams.update(ids, mask)
    prefix.update(ids, mask)
    assert float(grams.compute()) == 4 / 5
    assert float(prefix.compute()) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: RepetitionMonitor(orders=(2, 2)), "`orders`"),
        (lambda: RepetitionMonitor(orders=(0,)), "`order` \\(0\\)"),
        (lambda: RepetitionMonitor(variety_order=0), "`variety_order` \\(0\\)"),
        (lambda: RepetitionMonitor(prefix_length=0), "`length` \\(0\\)"),
        (lambda: RewardDistributionMonitor(max_bins=1), "`max_bins` \\(1\\)"),
    ],
)
def test_bad_arguments_name_themselves(build, words):
    with pytest.raises(ValueError, match=words):
        build()
