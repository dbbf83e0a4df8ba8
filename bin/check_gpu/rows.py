"""The rows themselves: what is run, and what is said of it. Each is started as a process of its own (`command.py`).

A row returns a status (`ok`, `failed`, `skipped`), a summary of one or a few lines, and its numbers.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from check_gpu import roofline
from check_gpu.models import fitting_layers, planned, run_config, shape_of, write_config, write_models
from check_gpu.timing import Iterations, bandwidth, product_rate, seconds

GIB = 2**30
PLAN_MAY_MISS = 1.1
"""Measured over planned memory: above it, a run that the plan lets through may not fit."""
MEMORY_SHARE = 0.9
"""Of the device's memory, what a planned run may take."""

Options = argparse.Namespace
Result = dict[str, Any]


def main() -> None:
    """Run one row; its result goes to a file, what it prints besides is for a person."""
    parser = argparse.ArgumentParser()
    parser.add_argument("row", choices=list(ROWS))
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--earlier", type=Path, required=True, help="JSON of the rows before")
    options = parser.parse_args()
    quiet()
    try:
        result = ROWS[options.row](options)
    except Exception as error:
        traceback.print_exc()
        text = str(error).strip().splitlines()
        result = said("failed", f"{type(error).__name__}: {text[0][:300] if text else ''}")
    options.out.write_text(json.dumps(result))


def quiet() -> None:
    """No warnings and no chatter of the libraries."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lit_rlhf"):
        logging.getLogger(name).setLevel(logging.ERROR)


def said(status: str, *lines: str, **numbers: Any) -> Result:
    """A row's result."""
    return {"status": status, "summary": "\n".join(lines), "numbers": numbers}


# ------------------------------------------------------------------------------------------------- the device


def device_row(options: Options) -> Result:
    """What the device is, and what its memory and its products reach here."""
    device = torch.device(options.device)
    numbers: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "name": "CPU", "memory": 0}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        numbers |= {"name": properties.name, "memory": properties.total_memory}
        numbers["capability"] = list(torch.cuda.get_device_capability(device))
    numbers["bandwidth"] = bandwidth(device, tiny=options.tiny)
    numbers["bf16_flops"] = product_rate(device, torch.bfloat16, tiny=options.tiny)
    numbers["fp32_flops"] = product_rate(device, torch.float32, tiny=options.tiny)
    return said(
        "ok",
        f"{numbers['name']}, {numbers['memory'] / GIB:.0f} GiB, torch {numbers['torch']}, CUDA {numbers['cuda']}",
        f"copies {numbers['bandwidth'] / 1e9:.0f} GB/s; products {numbers['bf16_flops'] / 1e12:.2f} TFLOP/s in bf16, "
        f"{numbers['fp32_flops'] / 1e12:.2f} in fp32",
        **numbers,
    )


def reached(options: Options) -> dict[str, float]:
    """Bandwidth and product rate: of the device row where it ran, measured again where it did not."""
    for row in earlier_rows(options):
        if row["row"] == "device" and row["status"] == "ok":
            return dict(row["numbers"])
    return dict(device_row(options)["numbers"])


def earlier_rows(options: Options) -> list[Result]:
    """The results of the rows before this one."""
    if not options.earlier.is_file():
        return []
    return list(json.loads(options.earlier.read_text())["rows"])


# -------------------------------------------------------------------------------------------------- the tests


def liger_row(options: Options) -> Result:
    """Liger's kernels against the plain layers, where they are installed; on a CPU that is bin/test-liger's."""
    if options.device != "cuda" or importlib.util.find_spec("liger_kernel") is None:
        return said("skipped", "not installed: liger-kernel" if options.device == "cuda" else "needs a GPU")
    return tests_row("tests/liger")(options)


def tests_row(file: str) -> Callable[[Options], Result]:
    """The `cuda` tests of a file, in a pytest of their own."""

    def run(options: Options) -> Result:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", file, f"--junitxml={report}"]
            code = subprocess.run(command, check=False).returncode
            return read_report(ElementTree.parse(report).getroot(), code)

    return run


def read_report(root: ElementTree.Element, code: int) -> Result:
    """What pytest's XML says: how many, and which failed."""
    counts, bad = {"passed": 0, "failed": 0, "skipped": 0}, []
    for case in root.iter("testcase"):
        kinds = {child.tag for child in case}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
        counts[kind] += 1
        if kind == "failed":
            bad.append(str(case.get("name")))
    good = code == 0 and counts["passed"] > 0 and not bad
    line = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    return said("ok" if good else "failed", line, *bad, exit_code=code, failures=bad, **counts)


# -------------------------------------------------------------------------------------------- kernels, decoding


def kernels_row(options: Options) -> Result:
    """Which attention kernels take the shapes that scoring and decoding have, and how long they need."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device, shape = torch.device(options.device), shape_of("1b", tiny=options.tiny)
    head, dtype = shape.hidden // shape.heads, torch.bfloat16
    width, rows = shape.prompt + shape.response, max(1, shape.micro_batch_tokens // (shape.prompt + shape.response))
    full = torch.randn(rows, shape.heads, width, head, device=device, dtype=dtype)
    one = torch.randn(shape.rows, shape.heads, 1, head, device=device, dtype=dtype)
    cached = torch.randn(shape.rows, shape.heads, width, head, device=device, dtype=dtype)
    seen = (torch.arange(width, device=device) >= 3).expand(shape.rows, 1, 1, width)
    attend = torch.nn.functional.scaled_dot_product_attention
    uses: dict[str, Callable[[], Any]] = {
        "scoring": lambda: attend(full, full, full, is_causal=True),
        "decoding": lambda: attend(one, cached, cached, attn_mask=seen),
    }
    times: dict[str, dict[str, float | None]] = {}
    for name, use in uses.items():
        times[name] = {"chosen": 1e3 * seconds(use, device)}
        for backend in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
            try:
                with sdpa_kernel([getattr(SDPBackend, backend)]):
                    times[name][backend.split("_")[0].lower()] = 1e3 * seconds(use, device)
            except RuntimeError:
                times[name][backend.split("_")[0].lower()] = None
    lines = [
        f"{name}: " + ", ".join(f"{k} {'no' if v is None else f'{v:.2f} ms'}" for k, v in found.items())
        for name, found in times.items()
    ]
    fast = [v for k, v in times["scoring"].items() if k in ("flash", "cudnn") and v is not None]
    return said("ok" if fast else "failed", *lines, **times)


def decode_row(options: Options) -> Result:
    """Tokens a second of the engine's ways to decode, in bf16 weights, against what the memory's bandwidth allows."""
    from lit_rlhf.models.loading.causal import load_causal_lm
    from lit_rlhf.models.loading.tokenizer import load_tokenizer
    from lit_rlhf.rollout.requests import generation_request
    from lit_rlhf.rollout.sampling import SamplingConfig
    from lit_rlhf.rollout.series import fixed_columns
    from lit_rlhf.rollout.transformers_engine import TransformersEngine
    from lit_rlhf.types import PromptBatch

    device = torch.device(options.device)
    shape = shape_of("1b", tiny=options.tiny)
    shape = replace(shape, layers=min(shape.layers, 8), response=min(shape.response, 128))
    ways = {"growing cache": {}, "static cache": {"static_cache": True}}
    if device.type == "cuda":  # a CPU's compiler takes minutes and shows nothing
        ways["static cache, compiled"] = {"static_cache": True, "compile": True}
    limit = roofline.decode_limit(
        shape.config(), rows=shape.rows, context=shape.prompt + shape.response / 2, itemsize=2,
        bandwidth=reached(options)["bandwidth"],
    )  # fmt: skip
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_models(shape, Path(folder))
        policy = load_causal_lm(f"{folder}/policy", dtype="bfloat16").to(device)
        tokenizer = load_tokenizer(f"{folder}/policy")
    ids = torch.randint(3, 20, (shape.rows, shape.prompt), generator=torch.Generator().manual_seed(0))
    prompts = PromptBatch(prompt_ids=ids, prompt_mask=ids > 0, records=({},) * shape.rows).to(device)
    sampling = SamplingConfig(max_response_length=shape.response, min_response_length=shape.response)
    uniforms = torch.rand(shape.rows, shape.response, dtype=torch.float64)
    request = generation_request(policy, tokenizer, prompts, uniforms, sampling)
    for name, way in ways.items():
        slots = shape.rows * fixed_columns(shape.prompt + shape.response)  # all rows at once, in fixed shapes as well
        engine = TransformersEngine(max_batch_tokens=slots, prefill_tokens=slots, drop_every=16, **way)
        engine.setup(tokenizer=tokenizer, device=device)
        engine.sync(policy)
        rates[name] = shape.rows * shape.response / seconds(lambda e=engine: e.generate(request), device, repeats=2)
        engine.close()
    lines = [f"{name}: {rate:,.0f} tokens/s, {rate / limit:.1%} of the limit" for name, rate in rates.items()]
    what = f"{shape.layers} layers of 1B, {shape.rows} x {shape.response} tokens; limit {limit:,.0f} tokens/s"
    return said("ok", what, *lines, limit=limit, rates=rates)


# ----------------------------------------------------------------------------------------------- PPO iterations


def ppo_row(name: str) -> Callable[[Options], Result]:
    """PPO iterations of random models of a shape: seconds, decoding and update against the hardware, memory."""

    def run(options: Options) -> Result:
        device, shape, whole = options.device, shape_of(name, tiny=options.tiny), shape_of(name, tiny=options.tiny)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            if device == "cuda":
                memory = torch.cuda.get_device_properties(0).total_memory * MEMORY_SHARE
                shape = fitting_layers(shape, folder, device, memory)
            write_models(shape, folder)
            iterations = train(run_config(shape, folder, device), folder)
            memory_plan = planned(shape, folder, device)
        return judge_ppo(options, shape, whole, iterations, memory_plan)

    return run


def train(config: dict[str, Any], folder: Path) -> Iterations:
    """Three iterations, the first of which warms up."""
    import lightning as L

    from lit_rlhf.commands.training import build

    built, iterations = build(["fit", *write_config(config, folder)]), Iterations()
    trainer = L.Trainer(
        **config["trainer"], max_epochs=3, default_root_dir=str(folder), callbacks=[iterations], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        num_sanity_val_steps=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(built.model, built.datamodule)
    return iterations


def judge_ppo(options: Options, shape: Any, whole: Any, iterations: Iterations, memory_plan: Any) -> Result:
    """The row of an iteration: what it took, and how far that is from what hardware and plan say."""
    hardware, times, config = reached(options), iterations.seconds(), shape.config()
    tokens = shape.rows * shape.response
    limit = roofline.decode_limit(
        config, rows=shape.rows, context=shape.prompt + shape.response / 2, itemsize=2, bandwidth=hardware["bandwidth"]
    )
    flops = roofline.update_flops(config, rows=shape.rows, prompt=shape.prompt, response=shape.response)
    rate, mfu = tokens / times["rollout"], flops / times["update"] / hardware["bf16_flops"]
    peaks = {phase: size / GIB for phase, size in iterations.peaks.items()}
    plan = {phase: (sum(memory_plan.resident.values()) + sum(parts.values())) / GIB
            for phase, parts in memory_plan.phases.items()}  # fmt: skip
    over = {phase: peaks[phase] / plan[phase] for phase in peaks if phase in plan}
    cut = "" if shape.layers == whole.layers else f" ({shape.layers} of {whole.layers} layers: all do not fit)"
    lines = [
        f"{shape.rows} x ({shape.prompt} + {shape.response}) tokens{cut}: {times['total']:.1f} s an iteration = "
        + ", ".join(f"{phase} {times[phase]:.1f}" for phase in ("rollout", "scoring", "update")),
        f"decoding {rate:,.0f} tokens/s, {rate / limit:.1%} of what the memory's bandwidth allows; update {mfu:.1%} of "
        "what a bf16 product reaches here (MFU)",
        *(f"memory in {phase}: {peaks[phase]:.1f} GiB, planned {plan[phase]:.1f}" for phase in over),
        f"first ratio off by {iterations.drift:g}",
    ]
    good = iterations.drift == 0.0 and all(ratio <= PLAN_MAY_MISS for ratio in over.values())
    return said(
        "ok" if good else "failed", *lines, layers=shape.layers, seconds=times, tokens_per_second=rate, limit=limit,
        mfu=mfu, memory=peaks, planned=plan, drift=iterations.drift,
    )  # fmt: skip


def trl_row(options: Options) -> Result:
    """TRL's PPO on the same work, where TRL is installed, beside the ``ppo-1b`` row."""
    from check_gpu.trl import missing, seconds_per_iteration

    lacking = missing()
    if lacking:
        return said("skipped", f"not installed: {lacking}")
    shape = shape_of("1b", tiny=options.tiny)
    with tempfile.TemporaryDirectory() as folder:
        write_models(shape, Path(folder))
        theirs = seconds_per_iteration(shape, Path(folder), options.device)
    known = {row["row"]: row["numbers"] for row in earlier_rows(options)}
    ours = known.get("ppo-1b", {}).get("seconds", {}).get("total")
    beside = "" if ours is None else f"; ours {ours:.1f} s, {theirs / ours:.2f} times faster"
    return said("ok", f"TRL {theirs:.1f} s an iteration{beside}", theirs=theirs, ours=ours)


def vllm_row(options: Options) -> Result:
    """VLLM's sleep mode, reloads under CUDA graphs, second runner and batch invariance, where it is installed."""
    from check_gpu.vllm_modes import installed, judged, seen

    if not installed():
        return said("skipped", "not installed: vllm")
    found = seen(options.device)
    wrong = judged(found, options.device)
    lines = [f"{mode}: " + ", ".join(f"{k} {v:.3g}" for k, v in n.items() if k != "error") for mode, n in found.items()]
    return said("failed" if wrong else "ok", *wrong, *lines, **found)


ROWS: dict[str, Callable[[Options], Result]] = {
    "device": device_row,
    "invariants": tests_row("tests/cuda/test_invariants.py"),
    "device-tests": tests_row("tests/cuda/test_device.py"),
    "zero": tests_row("tests/cuda/test_zero.py"),
    "liger": liger_row,
    "kernels": kernels_row,
    "decode": decode_row,
    "ppo-1b": ppo_row("1b"),
    "ppo-7b": ppo_row("7b"),
    "vllm": vllm_row,
    "trl": trl_row,
}

if __name__ == "__main__":
    main()
