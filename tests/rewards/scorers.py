"""Functions that a PythonReward names."""

from __future__ import annotations

import sys
import time

CALLS: list[int] = []
not_callable = 3


def length(prompts, responses, records):
    CALLS.append(len(prompts))
    return [float(len(r)) for r in responses]


def uses_records(prompts, responses, records):
    return [record["answer"] * (2 if record["ended"] else 1) + len(record["response_ids"]) for record in records]


def per_token(prompts, responses, records):
    return {"scores": [0.0] * len(prompts), "token_scores": [[1.0] * len(r["response_ids"]) for r in records]}


def fails_on_bad(prompts, responses, records):
    return [1 / 0 if "bad" in prompt else 1.0 for prompt in prompts]


def fails_together(prompts, responses, records):
    if len(prompts) > 1:
        raise KeyError("together")
    return [0.0]


def exits(prompts, responses, records):
    sys.exit(3)


def hangs_on_bad(prompts, responses, records):
    for prompt in prompts:
        if "bad" in prompt:
            time.sleep(30)
    return [0.0] * len(prompts)


def slow_together(prompts, responses, records):
    time.sleep(0.6 * len(prompts))
    return [0.0] * len(prompts)


def wrong_count(prompts, responses, records):
    return [1.0]


def nan_on_bad(prompts, responses, records):
    return [float("nan") if "bad" in prompt else 1.0 for prompt in prompts]


def builds_no_graph(prompts, responses, records):
    import torch

    weight = torch.ones(1, requires_grad=True)
    return [float((weight * 2).requires_grad)] * len(prompts)
