"""What all commands share: whole option names, errors of one line, `main(argv) -> None`."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from lit_rlhf.cli import COMMANDS
from lit_rlhf.commands.arguments import CommandParser, did_you_mean
from tests.command_line import ended, refused

NEEDED: dict[str, tuple[list[str], str]] = {
    "pocket run": ([], "--seed"),
    "pocket make": (["out"], "--seed"),
    "configs": ([], "--help"),
    "data check": (["x.jsonl"], "--format"),
    "report": (["run"], "--title"),
    "compare": (["a", "b"], "--out"),
    "tax": (["a", "b"], "--out"),
    "study": (["pocket/study"], "--jobs"),
    "score": (["--model", "rm", "x.jsonl"], "--format"),
    "export": (["x.ckpt", "out"], "--source"),
    "plan": (["--config", "preset:ppo_max"], "--memory"),
}
"""The least that each verb asks for, and one of its options."""
ARGPARSE = [verb for verb in COMMANDS if verb != "compare"]  # whose judge has options of its own, as trainers have


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_is_a_main_of_one_argument_that_returns_nothing(verb: str) -> None:
    main = import_module(COMMANDS[verb]).main
    assert list(inspect.signature(main).parameters) == ["argv"]
    assert inspect.signature(main).return_annotation == "None"


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = ended(capsys, *verb.split(), "--help")
    assert found.code == 0
    assert found.out.startswith(f"usage: lit-rlhf {verb} ")


@pytest.mark.parametrize("verb", [verb for verb in COMMANDS if verb != "configs"])  # which has none
def test_no_verb_takes_an_option_by_its_beginning(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, option = NEEDED[verb]
    assert f" {option}" in ended(capsys, *verb.split(), "--help").out
    line = refused(capsys, *verb.split(), *words, option[:-1], "1")
    assert f"{option[:-1]} 1" in line
    if verb in ARGPARSE:
        assert f"unrecognized arguments: {option[:-1]} 1. Did you mean: {option}" in line


@pytest.mark.parametrize("verb", [verb for verb in ARGPARSE if NEEDED[verb][0]])
def test_what_is_missing_is_one_line(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, *verb.split())
    assert "the following arguments are required" in line
    assert f"See `lit-rlhf {verb} --help`" in line


def test_wrong_values_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser("verb", "For this test.")
    parser.add_argument("--count", type=int)
    parser.add_argument("--kind", choices=["a", "b"])
    for words, told in ((["--count", "many"], "invalid int value: 'many'"), (["--kind", "c"], "invalid choice: 'c'")):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(words)
        err = capsys.readouterr().err
        assert told in err
        assert err.count("\n") == 1


def test_did_you_mean() -> None:
    known = ["max_epochs", "min_epochs", "max_steps", "seed_everything", "seed"]
    assert did_you_mean("max_epochz", known, most=2) == " Did you mean: max_epochs, min_epochs?"
    assert did_you_mean("seed_every", known) == " Did you mean: seed_everything?"
    assert did_you_mean("max", known, most=1) == " Did you mean: max_steps?"
    assert did_you_mean("zebra", known) == ""
