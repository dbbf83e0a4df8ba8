"""Memory and time of a start on large data: a file of prompts and one of pairs, without and with cached token ids.

Each start is a process of its own that sets a data module up, takes some batches of it, and says how long that took and
how much memory it had at most, mapped pages of files included; at the end, how much is the process's own (`anon`).
The processes that tokenize come beside it: about 150 MiB each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.shapes import make_tokenizer, versions

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
WORDS = tuple(
    "the of and to in a is that it was for on are as with his they at be this have from or one had by word but not"  # noqa: SIM905
    " what all were we when your can said there use an each which she do how their if will up other about".split()
)
WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """First and second start of each kind of file asked for."""
    if options.start:
        return start(options)
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(options.out / "cache", ignore_errors=True)
    result: dict[str, Any] = {"versions": versions(), "mib": options.mib, "cores": len(os.sched_getaffinity(0))}
    tokenizer = options.out / "tokenizer"
    make_tokenizer(512, [sentence(random.Random(0), 400)]).save_pretrained(tokenizer)
    result["nothing"] = process(options, "nothing")
    for kind in options.kinds:
        path = options.out / f"{kind}.jsonl"
        rows = write(path, kind, int(options.mib * MIB))
        starts = {name: process(options, kind) for name in ("first", "second")}
        entry = sum(file.stat().st_size for file in (options.out / "cache").rglob("*") if file.is_file())
        result[kind] = {"rows": rows, "cache_mib": round(entry / MIB), **starts}
        shutil.rmtree(options.out / "cache")
        path.unlink()
    return result


def sentence(chance: random.Random, words: int) -> str:
    """Words at random."""
    return " ".join(chance.choices(WORDS, k=words))


def write(path: Path, kind: str, size: int) -> int:
    """A file of ``size`` bytes in one of the layouts; its rows: short prompts, or pairs of a few turns."""
    chance, rows = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < size:
            lines = [json.dumps(row(chance, kind)) for _ in range(2000)]
            file.write("\n".join(lines) + "\n")
            rows += len(lines)
    return rows


def row(chance: random.Random, kind: str) -> dict[str, str]:
    """One row."""
    if kind == "prompts":
        return {"prompt": sentence(chance, chance.randint(8, 40))}
    turns = [f"\n\n{'Assistant' if i % 2 else 'Human'}: {sentence(chance, chance.randint(8, 40))}" for i in range(3)]
    told = "".join(turns) + "\n\nAssistant: "
    return {key: told + sentence(chance, chance.randint(8, 40)) for key in ("chosen", "rejected")}


def process(options: argparse.Namespace, kind: str) -> dict[str, float]:
    """One start, as a process of its own; what it took from its beginning to its end."""
    command = [sys.executable, str(ROOT / "bin" / "bench"), "data", "--start", kind, "--out", str(options.out)]
    command += ["--batches", str(options.batches)]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = time.monotonic()
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed.")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    took = {"process_s": round(time.monotonic() - started, 1), **found}
    sys.stderr.write(f"{kind}: {json.dumps(took)}\n")  # the whole may take an hour
    return took


def start(options: argparse.Namespace) -> dict[str, Any]:
    """In the process of a start: set up, take batches, and say what it took."""
    from lit_rlhf.datamodules.preference import PreferenceDataModule
    from lit_rlhf.datamodules.rollout import RolloutDataModule

    where: dict[str, Any] = {"template": "hh", "cache": True, "cache_dir": str(options.out / "cache")}
    tokenizer, path = str(options.out / "tokenizer"), str(options.out / f"{options.start}.jsonl")
    began = time.monotonic()
    after = began
    if options.start == "prompts":
        prompts = RolloutDataModule(tokenizer, path, test=path, rollout_batch_size=128, minibatch_size=32, **where)
        prompts.setup("test")
        prompts._prompts["train"] = prompts._prompts["test"]
        after = time.monotonic()
        for iteration in range(options.batches):
            prompts.take(iteration)
    elif options.start == "pairs":
        pairs = PreferenceDataModule(tokenizer, path, batch_size=64, val_fraction=0.01, **where)
        pairs.setup()
        after = time.monotonic()
        for number, _ in enumerate(pairs.train_dataloader()):
            if number + 1 >= options.batches:
                break
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "setup_s": round(after - began, 1),
        "batches_s": round(time.monotonic() - after, 1),
        "peak_mib": round(int(status["VmHWM"].split()[0]) / 1024),
        "anon_at_end_mib": round(int(status["RssAnon"].split()[0]) / 1024),
        "cpu_s": round(sum(sum(resource.getrusage(who)[:2]) for who in WHO)),
    }
