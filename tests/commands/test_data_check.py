"""The `data check` command: table, histograms, exit codes."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console

from lit_rlhf.commands.data_check import check_files
from tests.command_line import ended, refused

from .conftest import hh


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_table_and_histograms_account_for_every_row(write, hh_rows, console, tokenizer, tmp_path):
    rows = [
        *hh_rows,
        {"chosen": hh("q", ""), "rejected": hh("q", "b")},
        {"chosen": hh("q", "b" * 99), "rejected": hh("q", "a")},
    ]
    path = write("x.jsonl", rows)
    report = check_files(path, tokenizer, template="hh", max_length=80, rejects_dir=tmp_path, console=console)
    assert (report.read, report.accepted) == (12, 10)
    assert report.reasons == {"empty response": 1, "too long": 1}
    shown = console.file.getvalue()
    assert "Read as preference data: 10 of 12 rows accepted (format: hh)" in shown
    assert "chosen (tokens, without template): median 6" in shown
    assert "1 too long" in shown
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(row["line"], row["reason"]) for row in lines] == [(11, "empty response"), (12, "too long")]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([{"text": "abc"}], "sft"),
        ([{"prompt": "abc", "answer": 1}], "prompt"),
        ([["q", "a", "q2"]], "prompt"),
        ([["q", "a"]], "sft"),
    ],
)
def test_kind_is_found(write, console, rows, kind):
    check_files(write("x.json", rows), console=console)
    assert f"Read as {kind} data" in console.file.getvalue()


def test_nothing_usable_still_prints_the_table(write, console):
    report = check_files(write("x.jsonl", [{"text": " "}]), console=console)
    assert report.accepted == 0
    assert "1 empty response" in console.file.getvalue()


def test_max_length_needs_a_tokenizer(write, hh_rows):
    with pytest.raises(ValueError, match="`max_length` is in tokens: give a `tokenizer`"):
        check_files(write("x.jsonl", hh_rows), max_length=10)


def test_exit_codes(write, hh_rows, capsys):
    path = write("x.jsonl", [*hh_rows, {"chosen": hh("q", ""), "rejected": hh("q", "b")}])
    assert ended(capsys, "data", "check", path).code == 0
    strict = ended(capsys, "data", "check", path, "--on-bad-row", "error")
    assert (strict.code, strict.err) == (1, "")
    assert "1 empty" in strict.out
    assert ended(capsys, "data", "check", write("y.jsonl", hh_rows), "--on-bad-row", "error").code == 0
    assert ended(capsys, "data", "check", write("z.jsonl", [{"text": " "}])).code == 1, "no row can be used"
    assert "format not recognized for text data" in refused(capsys, "data", "check", path, "--kind", "text")
    assert "No data at" in refused(capsys, "data", "check", path + ".gone")
    assert "`max_length` is in tokens" in refused(capsys, "data", "check", path, "--max-length", "9")


def test_exit_codes_reach_the_shell(write, hh_rows):
    path = write("x.jsonl", [*hh_rows, {"chosen": hh("q", ""), "rejected": hh("q", "b")}])
    command = [sys.executable, "-m", "lit_rlhf", "data", "check", path]
    assert subprocess.run([*command, "--on-bad-row", "error"], check=False, capture_output=True).returncode == 1
    refused = subprocess.run([*command, "--on-bad", "error"], check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr == "lit-rlhf: unrecognized arguments: --on-bad error. Did you mean: --on-bad-row?\n"


def test_looking_at_data_does_not_import_torch():
    code = "import sys, lit_rlhf.commands.data_check; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
