"""The joint rule on synthetic series, and on series modelled on the pocket world's measured curves."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path

import pytest

from lit_rlhf.callbacks.collapse_rule import CollapseRule, RuleConfig

QUIET = {"kl": 0.0, "length": 15.0, "perplexity": 1.75, "tail": 1.9, "distinct": 0.65, "variety": 0.95}


def noisy(values, rng):
    """Noise of 64 responses a rollout, as measured: length 7 %, perplexity 4 %, tail 20 %, distinct 5 %."""
    spread = {"variety": 0.01, "length": 0.07, "perplexity": 0.04, "tail": 0.2, "distinct": 0.05}
    shaken = {k: v * (1 + rng.gauss(0, spread.get(k, 0.0))) for k, v in values.items()}
    return {**shaken, "kl": values["kl"] + rng.gauss(0, 0.002 + 0.1 * values["kl"])}


def ramp(t, points):
    """Piecewise-linear through ``points``."""
    for (a, x), (b, y) in itertools.pairwise(points):
        if t <= b:
            return x + (y - x) * (t - a) / (b - a)
    return points[-1][1]


VANILLA = {
    "kl": [(0, 0.0), (5, 0.002), (13, 0.05), (16, 0.09), (20, 0.125), (40, 0.25), (120, 0.9)],
    "length": [(0, 14.0), (6, 15.0), (13, 20.0), (16, 24.0), (20, 29.5), (30, 34.0), (120, 26.0)],
    "perplexity": [(0, 1.75), (20, 1.62), (60, 1.5), (120, 1.2)],
    "tail": [(0, 1.9), (120, 1.7)],
    "distinct": [(0, 0.66), (20, 0.47), (120, 0.3)],
    "variety": [(0, 0.94), (10, 0.95), (20, 0.75), (40, 0.5), (120, 0.1)],
}
PPO_MAX = {
    "kl": [(0, 0.0), (5, 0.0), (14, 0.035), (120, 0.055)],
    "length": [(0, 14.5), (12, 19.0), (120, 19.5)],
    "perplexity": [(0, 1.75), (30, 1.63), (120, 1.6)],
    "tail": [(0, 1.9), (120, 1.9)],
    "distinct": [(0, 0.66), (15, 0.6), (120, 0.54)],
    "variety": [(0, 0.93), (30, 0.97), (120, 0.97)],
}


def run(rule, series):
    """Flags raised by a list of mappings."""
    return [flag for t, values in enumerate(series) if (flag := rule.update(t, values))]


def modelled(curves, seed, length=120):
    rng = random.Random(seed)
    return [noisy({k: ramp(t, p) for k, p in curves.items()}, rng) for t in range(length)]


@pytest.mark.parametrize("seed", range(20))
def test_vanilla_is_flagged_before_the_fall_and_ppo_max_never(seed):
    flags = run(CollapseRule(), modelled(VANILLA, seed))
    assert 13 <= flags[0].iteration <= 20  # the gold win rate is 5 points under its peak from about 20 on
    assert {"kl", "length"} <= set(flags[0].fired)
    assert run(CollapseRule(), modelled(PPO_MAX, seed)) == []


RECORDED = json.loads((Path(__file__).parent / "recorded_series.json").read_text())


def fell_at(rates, drop=0.05):
    """First evaluation ``drop`` under the peak so far."""
    peak = 0.0
    for iteration, rate in sorted((int(k), v) for k, v in rates.items()):
        if rate <= peak - drop:
            return iteration
        peak = max(peak, rate)
    return None


@pytest.mark.parametrize("name", list(RECORDED))
def test_recorded_runs_of_the_pocket_world(name):
    """Seeds 1-3 were looked at when the constants were chosen, seed 4 was not; 64 responses a rollout."""
    run_ = RECORDED[name]
    rule, flags = CollapseRule(), []
    for k in range(len(run_["kl"])):
        flag = rule.update(run_["first"] + k, {signal: run_[signal][k] for signal in QUIET if signal in run_})
        flags += [flag] if flag else []
    if name.startswith("ppo_max"):
        assert flags == []
        return
    assert {"kl", "length"} <= set(flags[0].fired)
    # Seed 3 dips at iteration 15, recovers, and falls again from 45 on; the flag is raised by that very rollout.
    assert flags[0].iteration <= fell_at(run_["win_rate"]) - (name != "vanilla-3")


def test_step_change_is_flagged_after_patience_with_its_onset():
    jump = {"kl": 0.3, "length": 30.0, "perplexity": 1.2, "tail": 1.9, "distinct": 0.3}
    flags = run(CollapseRule(), [QUIET] * 20 + [jump] * 10)
    assert [(f.iteration, f.since) for f in flags] == [(21, 20)]
    assert flags[0].fired == ("kl", "length", "perplexity", "distinct")
    assert flags[0].index == pytest.approx(0.3 * 2 * (1.75 / 1.2) * (0.65 / 0.3))
    assert "kl 0.3 (was 0)" in flags[0].describe()


def test_slow_drift_is_flagged_when_it_has_gone_far_enough():
    drift = [{**QUIET, "kl": 0.001 * t, "length": 15 + 0.1 * t} for t in range(200)]
    flags = run(CollapseRule(RuleConfig(cooldown=1000)), drift)
    assert len(flags) == 1
    at = flags[0].iteration
    assert at == 110  # (0.001 t - 0.002) (15 + 0.1 t) / 15.2 passes 0.18 at t = 109; patience 2


def test_one_outlier_changes_nothing():
    wild = {"kl": 5.0, "length": 500.0, "perplexity": 1.0, "tail": 30.0, "distinct": 0.01}
    for at in (2, 10):
        series = [QUIET] * 30
        series[at] = wild
        assert run(CollapseRule(), series) == []


def test_outliers_apart_do_not_add_up():
    wild = {**QUIET, "kl": 5.0, "length": 500.0}
    assert run(CollapseRule(), ([QUIET] * 6 + [wild]) * 6) == []


def test_without_patience_the_outlier_would_have_counted_and_smoothing_forgives_it_too():
    series = [QUIET] * 10 + [{**QUIET, "kl": 5.0, "length": 500.0}] + [QUIET] * 10
    assert run(CollapseRule(RuleConfig(patience=1)), series)[0].iteration == 10
    assert run(CollapseRule(RuleConfig(patience=1, smoothing=3)), series) == []


def test_constant_series_and_ripples_on_it_are_quiet():
    assert run(CollapseRule(), [QUIET] * 100) == []
    ripples = [{**QUIET, "length": 15.0 + 0.1 * (t % 2), "kl": 0.004} for t in range(5, 100)]
    assert run(CollapseRule(), [QUIET] * 5 + ripples) == []


@pytest.mark.parametrize("name", [n for n in QUIET if n != "kl"])
def test_no_signal_is_enough_alone(name):
    far = {"length": 60.0, "perplexity": 1.01, "tail": 9.0, "distinct": 0.05, "variety": 0.1}[name]
    assert run(CollapseRule(), [QUIET] * 10 + [{**QUIET, name: far}] * 30) == []
    assert run(CollapseRule(), [QUIET] * 10 + [{**QUIET, "kl": 0.5}] * 30) == []
    assert len(run(CollapseRule(), [QUIET] * 10 + [{**QUIET, "kl": 0.5, name: far}] * 10)) == 1


def test_the_other_direction_is_health():
    better = {"kl": 0.2, "length": 15.0, "perplexity": 2.5, "tail": 1.0, "distinct": 0.9, "variety": 0.99}
    assert run(CollapseRule(), [QUIET] * 10 + [better] * 30) == []


@pytest.mark.parametrize("length", [7.5, 30.0])
def test_length_counts_either_way(length):
    flags = run(CollapseRule(), [QUIET] * 10 + [{**QUIET, "kl": 0.1, "length": length}] * 5)
    assert [(f.iteration, f.fired) for f in flags] == [(11, ("kl", "length"))]
    assert flags[0].index == pytest.approx(0.1 * 2)


def test_one_answer_to_all_prompts_is_seen_where_it_is_too_short_for_distinct_4():
    """Three words to everything: no 4-gram, so no distinct-4; as many tokens as before."""
    short = {"kl": 0.0, "length": 3.0, "variety": 0.9}
    same = {"kl": 0.08, "length": 3.0, "variety": 0.0}
    flags = run(CollapseRule(), [short] * 10 + [same] * 5)
    assert [(f.iteration, f.fired) for f in flags] == [(11, ("kl", "variety"))]
    assert flags[0].index == pytest.approx(0.08 * 4)  # `max_factor`
    assert run(CollapseRule(), [short] * 10 + [{**same, "variety": 0.9}] * 5) == []


def test_repetition_that_two_signals_see_counts_once():
    repeated = {**QUIET, "kl": 0.08, "distinct": 0.65 / 2, "variety": 0.95 / 1.8}
    rule = CollapseRule()
    assert run(rule, [QUIET] * 10 + [repeated] * 5) == []
    assert rule.index == pytest.approx(0.08 * 2)  # 0.288 as a product
    assert len(run(CollapseRule(), [QUIET] * 10 + [{**repeated, "variety": 0.95 / 3}] * 5)) == 1


# A pretrained chat model of 135M parameters, PPO on human preferences, a reward model that favours short answers, no
# warm-up. Measured at these iterations, straight lines in between. In the end nearly every prompt gets the same answer.
REAL = {
    "vanilla": {
        "kl": [(1, 0.0), (4, 0.16), (7, 0.21), (10, 0.59), (13, 2.81), (16, 2.25), (19, 2.04), (21, 2.42)],
        "length": [(1, 16.1), (4, 10.1), (7, 11.9), (10, 8.4), (13, 2.6), (16, 3.8), (19, 6.2), (21, 4.9)],
    },
    "PPO-max": {
        "kl": [(1, 0.0), (4, 0.009), (7, 0.069), (10, 0.058), (13, 0.121), (16, 0.275), (19, 0.344), (21, 0.516)],
        "length": [(1, 16.1), (4, 18.6), (7, 13.9), (10, 12.6), (13, 11.4), (16, 10.4), (19, 10.5), (21, 7.9)],
    },
    "PPO-max, kl_coef 0.3": {"kl": [(1, 0.0), (22, 0.097)], "length": [(1, 16.1), (22, 11.7)]},
}


@pytest.mark.parametrize(("name", "at"), [("vanilla", 6), ("PPO-max", 15), ("PPO-max, kl_coef 0.3", None)])
def test_a_real_run_that_collapses_to_short_is_flagged_while_it_still_answers(name, at):
    rule = CollapseRule()
    series = [(t, {signal: ramp(t, points) for signal, points in REAL[name].items()}) for t in range(1, 22)]
    flags = [flag for t, values in series if (flag := rule.update(t, values))]
    assert [flag.iteration for flag in flags[:1]] == ([] if at is None else [at])
    if flags:
        assert flags[0].fired == ("kl", "length")
        assert flags[0].readings["length"].value > 10  # of 16; it ends at 3 to 8


def test_rollouts_of_a_policy_that_has_moved_are_no_baseline():
    """The length falls from the first rollout on: a median of five would be half way, and its scale the fall itself."""
    series = [{"kl": 0.06 * t, "length": 16.0 - 1.5 * t} for t in range(10)]
    rule = CollapseRule()
    (flag,) = run(rule, series)
    assert (flag.iteration, flag.readings["length"].baseline) == (5, 15.25)  # of the first two
    assert run(CollapseRule(RuleConfig(baseline_kl=9.0)), series)[0].iteration == 7
    started_far = [{**values, "kl": 3.0 + values["kl"]} for values in series]  # the reference is another model
    assert run(CollapseRule(), started_far)[0].iteration == 5
    given = {"kl": [0.0], "length": [16.0]}
    assert run(CollapseRule(baseline=given), series)[0].iteration == 4


def test_one_nan_is_skipped_and_patience_of_them_is_a_flag():
    nan = {**QUIET, "perplexity": math.nan}
    assert run(CollapseRule(), [QUIET] * 10 + [nan] + [QUIET] * 10 + [nan]) == []
    flags = run(CollapseRule(), [QUIET] * 10 + [nan] * 2)
    assert [(f.iteration, f.since, f.fired) for f in flags] == [(11, 10, ("perplexity not finite",))]
    broken_from_the_start = run(CollapseRule(), [{**QUIET, "kl": math.inf}] * 3)
    assert broken_from_the_start[0].iteration == 1


def test_missing_signals_do_without_and_missing_kl_is_an_error():
    series = [{"kl": 0.0, "length": 15.0}] * 10 + [{"kl": 0.2, "length": 30.0}] * 5
    assert run(CollapseRule(), series)[0].fired == ("kl", "length")
    with pytest.raises(ValueError, match="must have 'kl'"):
        CollapseRule().update(0, {"length": 1.0})


def test_cooldown_spaces_the_flags():
    series = [QUIET] * 10 + [{**QUIET, "kl": 0.5, "length": 40.0}] * 30
    flags = run(CollapseRule(RuleConfig(cooldown=10)), series)
    assert [f.iteration for f in flags] == [11, 21, 31]


def test_given_baseline_replaces_the_first_iterations():
    far = {**QUIET, "kl": 0.5, "length": 40.0}
    assert run(CollapseRule(), [far] * 30) == []
    given = {name: [value] * 5 for name, value in QUIET.items()}
    assert run(CollapseRule(baseline=given), [far] * 30)[0].iteration == 1


@pytest.mark.parametrize("config", [RuleConfig(), RuleConfig(smoothing=3, patience=3)])
def test_state_resumes_at_every_iteration_through_json(config):
    series = modelled(VANILLA, 3, length=40)
    want = [f.as_dict() for f in run(CollapseRule(config), series)]
    assert want
    for cut in range(40):
        first = CollapseRule(config)
        head = [f.as_dict() for t in range(cut) if (f := first.update(t, series[t]))]
        second = CollapseRule(config)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        tail = [f.as_dict() for t in range(cut, 40) if (f := second.update(t, series[t]))]
        assert head + tail == want


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: RuleConfig(threshold=0.0), "`threshold` \\(0.0\\)"),
        (lambda: RuleConfig(baseline_kl=0.0), "`baseline_kl` \\(0.0\\)"),
        (lambda: RuleConfig(patience=0), "`patience` \\(0\\)"),
        (lambda: CollapseRule(baseline={"kll": [1.0]}), "`baseline` \\('kll'\\)"),
    ],
)
def test_bad_constants(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def drifting(slope, start=10, length=60):
    """KL that rises in a straight line from ``start`` on, with responses that are half as long again by then."""
    steps = (max(0, t - start) for t in range(length))
    return [{"kl": slope * n, "length": 21.0 if n else 14.0} for n in steps]


def test_a_horizon_flags_a_steady_rise_that_many_iterations_earlier():
    at = [run(CollapseRule(RuleConfig(patience=1, horizon=h)), drifting(0.01))[0].iteration for h in (0, 2, 4)]
    assert at == [22, 20, 18]


def test_a_horizon_does_not_make_a_plateau_or_one_outlier_a_collapse():
    plateau = [{"kl": min(0.08, 0.008 * t), "length": 14.0 + min(4, t)} for t in range(100)]
    plateau[60]["kl"] = 0.14
    rule = CollapseRule(RuleConfig(patience=1, horizon=3))
    assert run(rule, plateau) == []
    assert rule.forecast == pytest.approx(rule.index)


def test_the_tail_of_one_rollout_does_not_count_but_a_lasting_one_does():
    series = [{"kl": 0.0 if t < 10 else 0.08, "length": 14.0 if t < 10 else 17.0, "tail": 2.0} for t in range(40)]
    series[30]["tail"] = 6.0
    assert run(CollapseRule(RuleConfig(patience=1)), series) == []
    assert run(CollapseRule(RuleConfig(patience=1, tail_smoothing=1)), series)[0].iteration == 30
    lasting = [{**values, "tail": 6.0 if t >= 30 else 2.0} for t, values in enumerate(series)]
    assert run(CollapseRule(RuleConfig(patience=1)), lasting)[0].iteration == 32


def test_the_forecast_resumes():
    series = drifting(0.01)
    whole = CollapseRule(RuleConfig(threshold=9, horizon=3))
    run(whole, series[:20])
    resumed = CollapseRule(RuleConfig(threshold=9, horizon=3))
    resumed.load_state_dict(whole.state_dict())
    for t, values in enumerate(series[20:25], start=20):
        whole.update(t, values)
        resumed.update(t, values)
        assert resumed.forecast == whole.forecast


@pytest.mark.parametrize("bad", [{"trend": 2}, {"horizon": -1}, {"tail_smoothing": 0}])
def test_constants_that_make_no_sense_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RuleConfig(**bad)
