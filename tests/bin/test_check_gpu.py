"""`bin/check-gpu`: what it says of rows that fail, hang or have no time; its arithmetic; and all of it on the CPU."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from check_gpu import command, models, roofline, rows, vllm_modes
from check_gpu.timing import Iterations, bandwidth, product_rate
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
import json
with open({file!r}, "w") as out:
    json.dump({{"status": "ok", "summary": "well", "numbers": {{}}}}, out)
"""
SCRIPTS = {
    "device": GOOD,
    "invariants": "print('first'); raise SystemExit('no memory left')",
    "device-tests": "import time; print('waiting', flush=True); time.sleep(60)",
    "zero": GOOD,
}


def options(tmp_path: Path, *arguments: str) -> argparse.Namespace:
    return command.parser().parse_args(["--device", "cpu", "--out", str(tmp_path / "out.json"), *arguments])


def start(name: str, options: argparse.Namespace, file: Path) -> list[str]:
    return [sys.executable, "-c", SCRIPTS[name].format(file=str(file))]


def test_a_row_that_fails_or_hangs_is_a_row_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(command.LIMITS, "device-tests", 2)
    monkeypatch.setitem(command.PATIENCE, "cpu", 1.0)
    monkeypatch.setattr(command, "NO_TIME", 0.5)
    chosen = options(tmp_path, "--rows", *SCRIPTS, "--budget", "30")
    results = command.run_rows(chosen, start=start)
    assert [(r["row"], r["status"], r["summary"]) for r in results] == [
        ("device", "ok", "well"),
        ("invariants", "failed", "exit code 1: no memory left"),
        ("device-tests", "failed", "no end within 2 s: waiting"),
        ("zero", "ok", "well"),
    ]
    assert json.loads(chosen.out.read_text())["rows"] == results
    lines = command.table(results).splitlines()
    assert len(lines) == 5
    assert lines[2].split()[:2] == ["invariants", "failed"]


def test_rows_that_have_no_time_left_say_so(tmp_path: Path) -> None:
    results = command.run_rows(options(tmp_path, "--rows", "device", "zero", "--budget", "1"), start=start)
    assert [r["summary"] for r in results] == ["not begun: the budget of 1 s is used up"] * 2


@pytest.mark.parametrize(("status", "code"), [("ok", None), ("skipped", None), ("failed", 1)])
def test_the_exit_code_is_1_where_a_row_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str, code: int | None
) -> None:
    row = {"row": "device", "status": status, "seconds": 1.0, "summary": "x", "numbers": {}}
    monkeypatch.setattr(command, "run_rows", lambda *_, **__: [row])
    arguments = ["--device", "cpu", "--out", str(tmp_path / "out.json")]
    if code is None:
        command.main(arguments)
        return
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert error.value.code == code


def test_without_a_gpu_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "has_gpu", lambda: False)
    with pytest.raises(SystemExit) as error:
        command.main([])
    assert error.value.code == 2
    assert "--device cpu --tiny" in capsys.readouterr().err


def test_every_row_can_be_run() -> None:
    assert list(command.LIMITS) == list(rows.ROWS)
    assert command.ROOT == ROOT


def test_pytest_reports_are_counted() -> None:
    cases = "<testcase name='a'/><testcase name='b'><skipped/></testcase>"
    broken = "<testcase name='c'><failure/></testcase><testcase name='d'><error/></testcase>"
    good = rows.read_report(ElementTree.fromstring(f"<suite>{cases}</suite>"), 0)
    assert (good["status"], good["summary"]) == ("ok", "1 passed, 0 failed, 1 skipped")
    bad = rows.read_report(ElementTree.fromstring(f"<suite>{cases}{broken}</suite>"), 1)
    assert (bad["status"], bad["summary"].splitlines()) == ("failed", ["1 passed, 2 failed, 1 skipped", "c", "d"])
    nothing = rows.read_report(ElementTree.fromstring("<suite><testcase name='b'><skipped/></testcase></suite>"), 0)
    assert nothing["status"] == "failed"  # nothing was seen


def test_what_vllm_must_keep_is_judged() -> None:
    all_well = {"gap": 1e-6, "freed": 0.9, "again": 24, "halves": 24, "greedy": 24}
    assert vllm_modes.judged({"exact": all_well, "v2-runner": {**all_well, "halves": 20}}, "cuda") == []
    assert vllm_modes.judged({"exact": {**all_well, "freed": 0.0}}, "cpu") == []
    found = {"exact": {**all_well, "freed": 0.5, "greedy": 3}, "batch-invariant": {**all_well, "halves": 23}}
    assert vllm_modes.judged({**found, "v2-runner": {"error": "no"}}, "cuda") == [
        "v2-runner: no",
        "exact: greedy rows are not the policy's after an update",
        "exact: sleeping gave back 50%",
        "batch-invariant: halves are not the whole",
    ]


# ----------------------------------------------------------------------------------------------- the arithmetic

SMALL = replace(models.TINY, hidden=48, inner=80, layers=3)


def test_bytes_of_a_decode_step_are_those_of_a_models_weights_and_cache() -> None:
    config = SMALL.config()
    model = AutoModelForCausalLM.from_config(config)
    read = {name: p for name, p in model.named_parameters() if p.dim() > 1 and "embed" not in name}
    cached = 2 * 3 * 2 * 12  # keys and values, layers, heads, head size
    expected = 2 * (sum(p.numel() for p in read.values()) + 5 * 7.5 * cached)
    assert roofline.decode_bytes(config, rows=5, context=7.5, itemsize=2) == expected
    assert roofline.decode_limit(config, rows=5, context=7.5, itemsize=2, bandwidth=expected) == 5


@pytest.mark.parametrize("outputs", [1, 6])
def test_operations_of_a_forward_pass_are_those_torch_counts(outputs: int) -> None:
    config = SMALL.config()
    config._attn_implementation = "eager"  # counted in full: twice the causal half
    model = AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(4, 9, dtype=torch.int64), logits_to_keep=outputs, use_cache=False)
    found = roofline.forward_flops(config, rows=4, width=9, outputs=4 * outputs, per_output=config.vocab_size)
    # torch counts no masked half, and the rotary embedding's small product as well.
    pairs = 4 * 4 * 3 * 4 * 12 * (9 * 9 - 9 * 10 / 2)
    rotary = 2 * 4 * 9 * 6
    assert found + pairs == pytest.approx(counter.get_total_flops(), abs=rotary)


def test_an_update_is_three_passes_of_policy_and_critic() -> None:
    config = SMALL.config()
    shape = {"rows": 2, "width": 9, "outputs": 10}
    policy = roofline.forward_flops(config, **shape, per_output=config.vocab_size)
    critic = roofline.forward_flops(config, **shape, per_output=1)
    assert roofline.update_flops(config, rows=2, prompt=4, response=5) == 3 * (policy + critic)


def test_clocks_give_rates() -> None:
    cpu = torch.device("cpu")
    assert 1e6 < bandwidth(cpu, tiny=True) < 1e13
    assert 1e6 < product_rate(cpu, torch.float32, tiny=True) < 1e15


@pytest.mark.parametrize("layers", [1, 3, 40])
def test_as_many_layers_as_fit_are_taken(tmp_path: Path, layers: int) -> None:
    shape = replace(models.TINY, layers=10)
    memory = models.needed(replace(shape, layers=layers), tmp_path, "cuda")
    assert models.fitting_layers(shape, tmp_path, "cuda", memory + 100).layers == min(layers, 10)
    with pytest.raises(MemoryError, match="not even one layer"):
        models.fitting_layers(shape, tmp_path, "cuda", 0.0)


def iterations(**changed: Any) -> Iterations:
    made = Iterations()
    made.rows = [{"rollout": 1.0, "scoring": 1.0, "update": 2.0, "total": 4.0}]
    made.peaks, made.drift = {"update": 2 * 2**30}, 0.0
    for name, value in changed.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("changed", "status"),
    [({}, "ok"), ({"drift": 1e-3}, "failed"), ({"peaks": {"update": 3 * 2**30}}, "failed"), ({"peaks": {}}, "ok")],
)
def test_an_iteration_is_judged_by_its_first_ratios_and_by_the_plan(
    tmp_path: Path, changed: dict[str, Any], status: str
) -> None:
    earlier = tmp_path / "earlier.json"
    hardware = {"row": "device", "status": "ok", "numbers": {"bandwidth": 1e9, "bf16_flops": 1e9}}
    earlier.write_text(json.dumps({"rows": [hardware]}))
    plan = SimpleNamespace(resident={"weights": 2**30}, phases={"update": {"activations": 2**30}})
    shape = models.TINY
    result = rows.judge_ppo(
        argparse.Namespace(earlier=earlier), shape, replace(shape, layers=9), iterations(**changed), plan
    )
    assert result["status"] == status
    assert "4 of 9 layers" in result["summary"]
    assert result["numbers"]["tokens_per_second"] == 64.0
    flops = roofline.update_flops(shape.config(), rows=8, prompt=12, response=8)
    assert result["numbers"]["mfu"] == flops / 2.0 / 1e9


# ------------------------------------------------------------------------------------------------- all of it


@pytest.mark.distributed
@pytest.mark.timeout(2400)
def test_the_short_form_runs_every_row_on_the_cpu(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "bin" / "check-gpu"), "--device", "cpu", "--tiny", "--out", str(out)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    report = json.loads(out.read_text())
    states = {row["row"]: row["status"] for row in report["rows"]}
    assert list(states) == list(command.LIMITS)
    assert {name for name, state in states.items() if state == "failed"} == set(), done.stdout
    assert states["trl"] in ("ok", "skipped")
    assert states["vllm"] in ("ok", "skipped")
    assert done.returncode == 0, done.stderr
    numbers = {row["row"]: row["numbers"] for row in report["rows"]}
    assert numbers["invariants"]["passed"] > 10
    assert numbers["zero"]["failed"] == 0
    assert numbers["ppo-7b"]["drift"] == 0.0
    assert 0 < numbers["ppo-1b"]["tokens_per_second"] < numbers["ppo-1b"]["limit"]
    assert all(row["row"] in done.stdout for row in report["rows"])
