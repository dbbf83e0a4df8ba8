"""A reward model's fingerprint: a few texts, their token ids and their scores, written at export, re-checked at load.

It catches what no key list can: a head that was initialized anew, weights of another training run, a tokenizer that was
swapped, a library version that computes something else.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlhf.models.frozen import HostWeights
from lit_rlhf.models.scalar import score_rows

FILE_NAME = "fingerprint.json"
TEXTS = (
    "Hello! How can I help you today?",
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "I am sorry, but I cannot help with that. Is there anything else?",
    "1 + 1 = 2; 12 * 12 = 144.",
    "今天天气很好",
)
# Relative to the largest score: rounding differs between machines and kernels, a wrong model is off by far more.
FOUR_BITS = "nf4"
TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1, None: 1e-1}


def write_fingerprint(
    out: str | Path,
    model: Callable[[Tensor], Tensor],
    tokenizer: Any,
    *,
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    """Score the fixed texts and write ``fingerprint.json`` into ``out``.

    Args:
        out: An exported reward-model folder.
        model: Token ids ``(B, L)`` to scores ``(B, L)``.
        tokenizer: The one saved in the folder.
        dtype: Of the weights; it sets the tolerance. None: an adapter on a base in four bits, which scores are of.
        device: Where the model is.

    Raises:
        ValueError: A score is not finite.
    """
    rows = [encode(tokenizer, text) for text in TEXTS]
    scores = score_rows(model, rows, pad_token_id=tokenizer.pad_token_id, device=device).tolist()
    if not all(map(math.isfinite, scores)):
        raise ValueError(f"The reward model gives a score that is not finite ({scores}); nothing was exported.")
    cases = [{"text": t, "ids": r, "score": s} for t, r, s in zip(TEXTS, rows, scores, strict=True)]
    name = FOUR_BITS if dtype is None else str(dtype).removeprefix("torch.")
    content = {"dtype": name, "tolerance": TOLERANCES[dtype], "cases": cases}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (Path(out) / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def check_fingerprint(
    folder: Path,
    model: nn.Module,
    *,
    dtype: torch.dtype | None,
    tokenizer: Any | None = None,
    device: torch.device | str = "cpu",
) -> bool:
    """Score the stored token ids again and compare.

    Args:
        folder: A reward-model folder.
        model: The model as loaded from it, on the CPU.
        dtype: Of the loaded model: the tolerance is the wider of its own and the stored one. None: four bits.
        tokenizer: The folder's tokenizer; when given, the stored texts must give the stored ids too.
        device: Where to score them: the model is lent to it. Large models take minutes on one thread of a CPU.

    Returns:
        False when the folder has no fingerprint (a third-party model), True when it holds.

    Raises:
        ValueError: Scores or ids differ (says by how much, and on which text), or the file is no fingerprint.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        return False
    cases, tolerance, stored = _read(file)
    if (stored == FOUR_BITS) != (dtype is None):
        warnings.warn(
            f"'{folder}' was exported with a base in {stored} and is loaded with one in {dtype or FOUR_BITS}: its "
            "scores are others, and not checked.",
            stacklevel=4,
        )
        return False
    tolerance = max(tolerance, TOLERANCES[dtype])
    if tokenizer is not None:
        _check_ids(file, tokenizer, cases)
    if dtype is None:  # a weight in four bits is more than its tensor: it cannot be lent
        device = next(model.parameters()).device
    wanted = torch.tensor([case["score"] for case in cases], dtype=torch.float32)
    with _lent(model, device):
        scores = score_rows(model, [case["ids"] for case in cases], pad_token_id=0, device=device)
    errors = (scores - wanted).abs()
    worst = int(errors.argmax())
    # `not <=` so that a NaN score fails as well.
    if not float(errors.max()) <= tolerance * float(wanted.abs().max()):
        raise ValueError(
            f"'{folder}' does not give the scores it was exported with: {scores[worst]:.6g} instead of "
            f"{wanted[worst]:.6g} for '{cases[worst]['text']}' (tolerance {tolerance:g} of the largest score). The "
            f"weights are not those of the export. To use them all the same, delete '{FILE_NAME}'."
        )
    return True


def _lent(model: nn.Module, device: torch.device | str) -> AbstractContextManager[None]:
    """The model on ``device``; one whose base is on an accelerator already, for others that share it, stays there."""
    there = any(p.device.type not in ("cpu", "meta") for p in model.parameters())
    return nullcontext() if there else HostWeights(model).on(device)


def _read(file: Path) -> tuple[list[dict[str, Any]], float, str]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        cases = [
            {"text": str(c["text"]), "ids": list(map(int, c["ids"])), "score": float(c["score"])}
            for c in stored["cases"]
        ]
        return cases, float(stored["tolerance"]), str(stored.get("dtype"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{file}' is not a fingerprint ({type(error).__name__}: {error}).") from error


def _check_ids(file: Path, tokenizer: Any, cases: list[dict[str, Any]]) -> None:
    for case in cases:
        if encode(tokenizer, case["text"]) != case["ids"]:
            raise ValueError(
                f"The tokenizer beside '{file}' does not encode '{case['text']}' as it did at export: it is not the "
                "tokenizer the reward model was trained with."
            )


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a whole text as the tokenizer makes them, one EOS at the end."""
    ids: list[int] = list(tokenizer(text)["input_ids"])
    return ids if ids and ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]
