"""The monitors against term-by-term sums in Python, in a trainer whose module is not ours."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch

from lit_rlhf.callbacks import (
    KLMonitor,
    PerplexityMonitor,
    RepetitionMonitor,
    ResponseLengthMonitor,
    RewardDistributionMonitor,
)
from lit_rlhf.callbacks.reward_distribution import shape_statistics
from tests.callbacks.stand_in import StandIn, fit, made_up


def rows(x, column):
    """Masked rows as Python lists."""
    return [
        [v for v, keep in zip(r, m, strict=True) if keep]
        for r, m in zip(getattr(x, column).tolist(), x.response_mask.tolist(), strict=True)
    ]


def expected(x) -> dict[str, float]:
    old, ref, ids = rows(x, "old_logprobs"), rows(x, "ref_logprobs"), rows(x, "response_ids")
    drift = [[a - b for a, b in zip(o, r, strict=True)] for o, r in zip(old, ref, strict=True)]
    flat = [d for row in drift for d in row]
    n = len(flat)
    lengths = sorted(len(r) for r in ids)
    grams = [tuple(r[i : i + 2]) for r in ids for i in range(len(r) - 1)]
    prefixes = Counter(tuple(r[:2]) for r in ids)
    return {
        "monitor/kl/k1": sum(flat) / n,
        "monitor/kl/k3": sum(math.exp(-d) - 1 + d for d in flat) / n,
        "monitor/kl/sequence": sum(map(sum, drift)) / len(drift),
        "monitor/perplexity/policy": math.exp(-sum(map(sum, old)) / n),
        "monitor/perplexity/reference": math.exp(-sum(map(sum, ref)) / n),
        "monitor/length/mean": sum(lengths) / len(lengths),
        "monitor/length/cut": sum(not e for e in x.ended.tolist()) / len(lengths),
        "monitor/repetition/distinct_2": len(set(grams)) / len(grams),
        "monitor/repetition/prefix_share": max(prefixes.values()) / len(ids),
        "monitor/reward_distribution/mean": sum(x.scores.tolist()) / len(lengths),
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


def test_shape_statistics_against_plain_sums_and_scipy():
    stats = pytest.importorskip("scipy.stats")
    x = torch.randn(500, generator=torch.Generator().manual_seed(0)).exp()
    got = shape_statistics(x)
    assert got["skew"] == pytest.approx(stats.skew(x.double().numpy()), rel=1e-9)
    assert got["kurtosis"] == pytest.approx(stats.kurtosis(x.double().numpy()), rel=1e-9)
    ordered = sorted(x.tolist())
    median = (ordered[249] + ordered[250]) / 2
    tail = (sum(ordered[-25:]) / 25 - median) / (median - sum(ordered[:250]) / 250)
    assert got["upper_tail"] == pytest.approx(tail, rel=1e-6)


def test_upper_tail_sees_a_tail_and_neither_shift_nor_scale():
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(1))
    base = shape_statistics(x)["upper_tail"]
    assert base == pytest.approx(2.58, abs=0.1)
    assert shape_statistics(3 * x + 5)["upper_tail"] == pytest.approx(base, rel=1e-4)
    long = torch.where(x > 1.5, x * 3, x)
    assert shape_statistics(long)["upper_tail"] > 1.8 * base


def test_shape_of_a_constant_sample_is_nan_not_an_error():
    got = shape_statistics(torch.ones(4))
    assert got["std"] == 0.0
    assert math.isnan(got["upper_tail"])
    assert math.isnan(got["skew"])


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


def test_distinct_counts_like_a_set_over_large_vocabularies():
    from lit_rlhf.callbacks.response_metrics import DistinctNgrams

    ids = torch.randint(0, 150_000, (64, 200), generator=torch.Generator().manual_seed(2))
    ids[:, 100:] = ids[:, :100]
    metric = DistinctNgrams(3)
    metric.update(ids, torch.ones_like(ids, dtype=torch.bool))
    grams = [tuple(r[i : i + 3]) for r in ids.tolist() for i in range(198)]
    assert float(metric.compute()) == pytest.approx(len(set(grams)) / len(grams), abs=1e-7)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: RepetitionMonitor(orders=(2, 2)), "`orders`"),
        (lambda: RepetitionMonitor(orders=(0,)), "`order` \\(0\\)"),
        (lambda: RepetitionMonitor(prefix_length=0), "`length` \\(0\\)"),
        (lambda: RewardDistributionMonitor(max_bins=1), "`max_bins` \\(1\\)"),
    ],
)
def test_bad_arguments_name_themselves(build, words):
    with pytest.raises(ValueError, match=words):
        build()
