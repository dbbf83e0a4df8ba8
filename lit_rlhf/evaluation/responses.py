"""Evaluated responses: the rows that validation and test save, and their means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_rlhf.functional.diagnostics import perplexity


def evaluation_means(rows: Sequence[dict[str, Any]], score_names: Sequence[str]) -> dict[str, float]:
    """Means over responses, and over response tokens for KL (k1, nats per token) and perplexity.

    KL is absent where the rows have no ``ref_logprob``.

    Args:
        rows: Rows of ``evaluate_prompts``, all ranks together.
        score_names: Which keys of the rows to average.
    """
    tokens = max(1, sum(row["tokens"] for row in rows))
    total = len(rows)
    logprob = sum(row["logprob"] for row in rows)
    traveled = {}
    if all("ref_logprob" in row for row in rows):
        distance = logprob - sum(row["ref_logprob"] for row in rows)
        traveled = {"kl": distance / tokens, "kl_sequence": distance / total}
    return {
        **{name: sum(row[name] for row in rows) / total for name in score_names},
        **traveled,
        "perplexity": perplexity(-logprob / tokens),
        "response_length": tokens / total,
        "eos_rate": sum(row["ended"] for row in rows) / total,
    }


def answer_means(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same means of whatever was saved: another program's rows may lack scores, tokens or log-probabilities."""

    def has(name: str) -> bool:
        return all(isinstance(row.get(name), int | float) for row in rows)

    means: dict[str, Any] = {"score": sum(row["score"] for row in rows) / len(rows)} if has("score") else {}
    if has("tokens") and has("logprob"):
        means |= evaluation_means([{"ended": True, **row} for row in rows], [])
    elif has("tokens"):
        means["response_length"] = sum(row["tokens"] for row in rows) / len(rows)
    means.pop("kl_sequence", None)
    return means
