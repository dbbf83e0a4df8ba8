"""A synthetic run directory, as Lightning's CSVLogger and the callbacks would leave it."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path

TEXT = "the capital of france is paris . i hope this helps ! the sky is blue and grass is green , of course ."
WORDS = TEXT.split()


def make_run(root: Path, *, collapsing: bool, seed: int = 0, iterations: int = 60, updates: int = 4) -> Path:
    """Write metrics, samples, histograms, events and config for one run."""
    rng = random.Random(seed)
    folder = root / "csv" / "version_0"
    folder.mkdir(parents=True)
    rows = []
    for epoch in range(iterations):
        drift = epoch / iterations
        kl = 0.9 * drift**1.5 if collapsing else 0.05 * (1 - math.exp(-epoch / 6))
        length = 14 + (14 * (1 - math.exp(-epoch / 10)) if collapsing else 5 * (1 - math.exp(-epoch / 6)))
        score = (3.5 * drift if collapsing else 1.0 * (1 - math.exp(-epoch / 8))) - 0.5
        once = {
            "rollout/score": score + rng.gauss(0, 0.1),
            "rollout/kl": kl + rng.gauss(0, 0.002 + 0.05 * kl),
            "rollout/response_length": length + rng.gauss(0, 0.7),
            "rollout/perplexity": 1.75 - (0.5 if collapsing else 0.1) * drift + rng.gauss(0, 0.03),
            "rollout/value": score + rng.gauss(0, 0.1),
            "rollout/return": score + rng.gauss(0, 0.1),
            "rollout/advantage": rng.gauss(0, 0.05),
            "monitor/collapse/index": kl * length / 14,
            "kl_coef": 0.2,
        }
        for update in range(updates):
            row = {"epoch": epoch, "step": epoch * updates + update, **once}
            row |= {
                "loss/value": 0.6 * math.exp(-epoch / 10) + 0.03 + abs(rng.gauss(0, 0.01)),
                "loss/policy": rng.gauss(-0.01, 0.01),
                "update/explained_variance": 1 - math.exp(-epoch / 15) + rng.gauss(0, 0.05),
                "update/clip_fraction": abs(rng.gauss(0.05, 0.01)),
                "update/approx_kl": abs(rng.gauss(0.002, 0.001)),
                "update/grad_norm": abs(rng.gauss(1, 0.2)),
            }
            rows.append(row)
        if epoch % 10 == 9:
            gold = (0.6 - 1.5 * drift) if collapsing else 0.6
            rows.append({"epoch": epoch, "step": epoch * updates + updates - 1, "val/score": score, "val/gold": gold})
    names = sorted({name for row in rows for name in row})
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    _write(root / "samples.jsonl", _samples(rng, iterations, updates, collapsing))
    _write(root / "reward_histograms.jsonl", _histograms(rng, iterations, updates, collapsing))
    if collapsing:
        _write(root / "collapse.jsonl", [_event(17 * updates)])
    (root / "config.yaml").write_text(
        "model:\n  class_path: PPOModule\n  init_args: {kl_coef: 0.2} # <b>not bold</b>\n"
    )
    (root / "versions.json").write_text(json.dumps({"torch": "9.9.9"}))
    return root


def _write(path: Path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _samples(rng, iterations, updates, collapsing):
    for epoch in [0, *range(9, iterations, 10)]:
        step = 0 if epoch == 0 else (epoch + 1) * updates - 1
        for index in range(3):
            n = rng.randrange(10, 18) + (epoch if collapsing else 0)
            tokens = [f"{WORDS[(index * 3 + k) % len(WORDS)]} " for k in range(n)]
            logprob = [-abs(rng.gauss(0.4, 0.5)) for _ in tokens]
            kl = [rng.gauss(0.02 * epoch / 10, 0.1) for _ in tokens]
            yield {
                "iteration": epoch,
                "step": step,
                "kind": "fixed",
                "index": index,
                "prompt": f"human: what is the capital of place {index} ? assistant:",
                "response": "".join(tokens) + ("</script><b>bold</b>" if index == 1 else ""),
                "score": rng.gauss(epoch / 20, 0.3),
                "kl": sum(kl) / n,
                "kl_sequence": sum(kl),
                "ended": n < 40,
                "tokens": tokens,
                "columns": {
                    "logprob": logprob,
                    "ref_logprob": [a - b for a, b in zip(logprob, kl, strict=True)],
                    "kl": kl,
                    "advantage": [rng.gauss(0, 0.5) for _ in tokens],
                    "value": [rng.gauss(0.5, 0.3) for _ in tokens],
                },
            }


def _histograms(rng, iterations, updates, collapsing):
    for epoch in range(iterations):
        center = 3 * epoch / iterations if collapsing else 1 - math.exp(-epoch / 8)
        scores = [rng.gauss(center, 0.8) + (rng.expovariate(1) if collapsing else 0) for _ in range(128)]
        width = 0.25
        first = math.floor(min(scores) / width)
        counts = [0] * (math.floor(max(scores) / width) - first + 1)
        for score in scores:
            counts[math.floor(score / width) - first] += 1
        yield {"iteration": epoch, "step": epoch * updates, "start": first * width, "width": width, "counts": counts}


def _event(step):
    reading = {"value": 0.11, "baseline": 0.001, "deviation": 20.0, "factor": 0.11, "since": 15}
    longer = {"value": 23.0, "baseline": 14.5, "deviation": 6.0, "factor": 1.6, "since": 14}
    return {
        "iteration": 17,
        "step": step,
        "since": 16,
        "index": 0.19,
        "fired": ["kl", "length"],
        "readings": {"kl": reading, "length": longer},
        "action": "warn",
        "did": "Told, nothing else.",
    }
