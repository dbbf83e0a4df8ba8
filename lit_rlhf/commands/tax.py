"""`lit-rlhf tax`: what alignment costs in understanding: held-out text and tasks, model beside model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lit_rlhf.commands.arguments import CommandParser
from lit_rlhf.commands.compare import named
from lit_rlhf.evaluation.tax import LOSS, Measurement, Sums, Tax, measurement, text_sums
from lit_rlhf.files import write_text
from lit_rlhf.reports.compare_page import write_tax
from lit_rlhf.user_errors import UserError


def main(argv: Sequence[str]) -> None:
    """Measure, print the table, write it.

    Raises:
        FileNotFoundError: A model, text or task does not exist.
        ValueError: The models cannot be compared, or a text or task cannot be used.
    """
    options = _parser().parse_args(argv)
    if not options.text and not options.tasks:
        raise UserError("Name what to measure on: `--text` FILES, `--tasks` FILES, or both.")
    models = named(options.models)
    baseline = options.against or next(iter(models))
    if len(models) < 2 or baseline not in models:
        raise UserError(f"Name at least two models, `--against` ({baseline}) among them: {', '.join(models)}.")
    measured = [*_texts(models, baseline, options), *_tasks(models, baseline, options)]
    tax = Tax(baseline=baseline, models=list(models), measurements=measured)
    Console().print(tax.to_rich())
    if options.out is not None:
        tax.write(options.out.with_suffix(".json"))
        write_text(options.out.with_suffix(".md"), tax.to_markdown())
        write_tax(tax, options.out.with_suffix(".html"))


def _texts(models: Mapping[str, str], baseline: str, options: argparse.Namespace) -> list[Measurement]:
    """Every file is a source of its own."""
    from lit_rlhf.data.loading import read_sft

    if not options.text:
        return []
    records = {path: read_sft([path], on_bad_row=options.on_bad_row)[0] for path in options.text}
    names = _short_names(options.text)
    sums: dict[str, dict[str, Sums]] = {path: {} for path in records}
    for name, model, tokenizer, device in _loaded(models, options):
        for path, documents in records.items():
            sums[path][name] = text_sums(
                model, tokenizer, documents, template=options.template, max_length=options.max_length, device=device
            )
    return [measurement(names[path], LOSS, found, baseline=baseline) for path, found in sums.items()]


def _loaded(models: Mapping[str, str], options: argparse.Namespace) -> Any:
    """Name, model, tokenizer and device of each, one in memory at a time.

    Raises:
        ValueError: Two models have different tokenizers: their losses per token are of different tokens.
    """
    from lit_rlhf.models.loading.causal import load_causal_lm
    from lit_rlhf.models.loading.tokenizer import load_tokenizer, same_vocabulary

    device = _device(options)
    tokenizers = {name: load_tokenizer(path) for name, path in models.items()}
    first, *others = tokenizers
    for name in others:
        if not same_vocabulary(tokenizers[first], tokenizers[name]):
            raise UserError(f"{first} and {name} have different tokenizers: their losses per token do not compare.")
    for name, path in models.items():
        model = load_causal_lm(path, dtype=options.dtype).to(device).eval()
        yield name, model, tokenizers[name], device
        del model


def _tasks(models: Mapping[str, str], baseline: str, options: argparse.Namespace) -> list[Measurement]:
    from lit_rlhf.evaluation.harness import task_sums

    if not options.tasks:
        return []
    found = {
        name: task_sums(path, options.tasks, device=_device(options), dtype=options.dtype)
        for name, path in models.items()
    }
    return [
        measurement(task, metric, {name: sums[task, metric] for name, sums in found.items()}, baseline=baseline)
        for task, metric in found[baseline]
    ]


def _device(options: argparse.Namespace) -> str:
    import torch

    return str(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """File names without ending; whole paths where two are called alike."""
    stems = {path: Path(path).stem for path in paths}
    return stems if len(set(stems.values())) == len(paths) else {path: path for path in paths}


def _parser() -> CommandParser:
    parser = CommandParser(
        "tax",
        "What alignment costs: language-model loss on held-out text by file, and tasks of lm-eval, of several models\n"
        "on the same documents, with paired intervals.",
    )
    parser.add_argument(
        "models", nargs="+", metavar="NAME=MODEL", help="folders or hub names; the first is compared with"
    )
    parser.add_argument("--text", nargs="+", default=[], metavar="FILE", help="texts or dialogues; a file is a source")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="YAML files or names of lm-eval tasks")
    parser.add_argument("--against", metavar="NAME", help="the model to compare with (default: the first)")
    parser.add_argument("--out", type=Path, help="write OUT.json, OUT.md and OUT.html")
    parser.add_argument("--template", help="hh, moss-en or moss-zh (default: the tokenizer's chat template)")
    parser.add_argument("--max-length", type=int, default=1024, help="most tokens of a row (default: 1024)")
    parser.add_argument("--on-bad-row", choices=("skip", "error"), default="skip", help="default: skip")
    parser.add_argument("--dtype", default="float32", help="of the weights (default: float32)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    return parser
