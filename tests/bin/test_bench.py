"""The parts of bin/bench that turn options and runs into comparisons."""

from argparse import Namespace

import pytest
from benchmarks import command, shares
from benchmarks.calls import spread
from benchmarks.command import costs, parser, peer_arguments, without_peer
from benchmarks.scaling import slope
from benchmarks.shapes import Clock, medians


def test_our_command_line_loses_only_the_peer():
    arguments = ["ppo", "--peer", "python", "--seed", "3", "--peer-dir=x", "--rounds", "2", "--data", "d"]
    assert without_peer(arguments) == ["ppo", "--seed", "3", "--data", "d"]


def test_the_peer_gets_the_same_work():
    options = parser().parse_args(["ppo", "--data", "d", "--iterations", "5", "--precision", "bf16-mixed"])
    options.clock = "cpu"
    arguments = peer_arguments(options)
    assert arguments[-1] == "--bf16"
    pairs = dict(zip(arguments[:-1:2], arguments[1:-1:2], strict=True))
    assert pairs["--updates"] == "5"
    assert pairs["--eos-rate"] == "0.04"
    assert pairs["--mini-batches"] == "4"


OURS = {
    "seconds": {"total": 2.0, "rollout": 1.0, "between": 0.1},
    "share_of_product_speed": {"total": 0.4, "rollout": 0.2},
    "response_tokens": 10,
    "prompt_tokens": 10,
    "memory_peak_mib": 5,
}
THEIRS = {
    "phases_median_s": {"total": 6.0, "rollout": 4.0, "between": 0.5},
    "response_tokens_per_iteration": 20,
    "prompt_tokens_per_iteration": 10,
    "peak_rss_mb": 10,
}


def test_costs_are_ours_and_theirs():
    assert costs("ppo", OURS, THEIRS) == {
        "total": (2.0, 6.0),
        "rollout": (1.0, 4.0),
        "rollout_per_token": (0.1, 0.2),
        "total_per_token": (0.1, 0.2),
        "memory": (5, 10),
    }


def test_the_peers_share_is_ours_by_seconds_and_tokens():
    """Three times the seconds for one and a half times the tokens: half our share."""
    found = command.peer_shares("ppo", [OURS], [THEIRS])
    assert {phase: (each["ours"]["median"], each["peer"]["median"]) for phase, each in found.items()} == {
        "total": (0.4, 0.2),
        "rollout": (0.2, 0.075),
    }


@pytest.mark.parametrize(
    "words",
    [
        ["ppo", "--layers", "0"],
        ["zero", "--ranks", "4"],
        ["tricks", "--stub-models"],
        ["overhead", "--strategy", "ddp"],
    ],
)
def test_what_would_be_ignored_is_refused(words, capsys):
    with pytest.raises(SystemExit):
        command.main([*words, "--data", "d"])
    assert words[1] in capsys.readouterr().err


def test_slope_is_the_exponent():
    assert slope({size: 3.0 * size**1.5 for size in (2, 4, 16)}) == 1.5


def test_spread_and_medians():
    assert spread([3.0, 1.0, 2.0]) == {"min": 1.0, "median": 2.0, "max": 3.0}
    assert medians([{"a": 1.0}, {"a": 3.0, "b": 2.0}]) == {"a": 2.0, "b": 1.0}


def test_clock_adds_up_and_starts_again():
    clock = Clock("wall")
    clock.timed("x", sum)([1])
    clock.timed("x", sum)([1])
    assert list(clock.take()) == ["x"]
    assert clock.take() == {}


def test_options_are_required_and_checked(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["ppo"])
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ppo", "overhead", "zero", "scaling", "tricks"])
def test_every_command_that_runs_ppo_has_its_options(name):
    options = parser().parse_args([name, "--data", "d"])
    needed = {"preset", "threads", "precision", "clock", "micro_batch_tokens", "seed", "data", "prompt_len"}
    needed |= {"ppo_epochs", "mini_batches", "iterations", "warmup", "ranks", "strategy", "stub_models"}
    needed |= {"sampler_logprobs", "layers"} | ({"without"} if name != "tricks" else set())
    assert needed <= set(vars(options))


def test_shares_are_of_the_same_round(monkeypatch):
    seconds = iter([10.0, 1.0, 20.0, 1.0])
    calls = []

    def call(command, threads):
        calls.append("--stub-models" in command)
        return {"seconds": {"total": next(seconds)}}

    monkeypatch.setattr(shares, "call", call)
    options = parser().parse_args(["overhead", "--data", "d", "--rounds", "2"])
    assert shares.overhead(options)["share_of_the_total"] == {"total": {"min": 0.05, "median": 0.075, "max": 0.1}}
    assert calls == [False, True, False, True]


def test_waiting_for_the_other_rank_counts(monkeypatch, capsys):
    clocks = {}
    monkeypatch.setattr(command, "run", lambda options: clocks.setdefault(options.command, options.clock) and {})
    for name in ("ppo", "zero"):
        command.main([name, "--data", "d"])
    capsys.readouterr()
    assert clocks == {"ppo": "cpu", "zero": "wall"}


@pytest.mark.parametrize("words", [[], ["--eos-rate", "0", "--stub-models"]])
def test_what_vllm_has_no_heads_for_is_refused(capsys, words):
    with pytest.raises(SystemExit):
        command.main(["ppo", "--data", "d", "--engine", "vllm", *words])
    assert "--engine vllm needs --eos-rate 0" in capsys.readouterr().err


def test_a_start_on_data_is_measured_without_and_with_the_cache(tmp_path, monkeypatch):
    """The short form of `bin/bench data`: starts in this process, on files of 40 KiB."""
    from benchmarks import data

    monkeypatch.setattr(
        data, "process", lambda options, kind: data.start(Namespace(**{**vars(options), "start": kind}))
    )
    options = parser().parse_args(["data", "--mib", "0.04", "--batches", "3", "--out", str(tmp_path)])
    found = data.run(options)
    for kind in options.kinds:
        assert found[kind]["rows"] >= 2000
        assert found[kind]["cache_mib"] >= 0
        for name in ("first", "second"):
            assert 0 < found[kind][name]["anon_at_end_mib"] <= found[kind][name]["peak_mib"]
    assert {path.name for path in tmp_path.iterdir()} == {"tokenizer"}
