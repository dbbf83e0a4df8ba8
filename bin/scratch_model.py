"""A small Llama from scratch with a byte-level BPE tokenizer trained on your files, as a Hugging Face folder.

For trying the pipeline on real text without a model hub; for anything else start from a pretrained model. Shapes and
tokenizer are those of the benchmarks.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator
from pathlib import Path

from benchmarks.shapes import PRESETS, llama_config, make_tokenizer


def main() -> None:
    """Train the tokenizer, draw the weights, write both."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--preset", choices=PRESETS, default="5m")
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="text files (.gz too) for the tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--context", type=int, default=2048, help="most positions")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.preset, args.data, args.out, context=args.context, seed=args.seed)
    print(args.out)


def write(preset: str, data: list[Path], out: Path, *, context: int, seed: int) -> None:
    """The folder of a random model of the given shape."""
    import torch
    from transformers import LlamaForCausalLM

    from lit_rlhf.models.loading.pretrained import quiet

    tokenizer = make_tokenizer(PRESETS[preset][-1], lines(data), model_max_length=context)
    torch.manual_seed(seed)
    with quiet():
        LlamaForCausalLM(llama_config(preset, context)).save_pretrained(out)
    tokenizer.save_pretrained(out)


def lines(data: list[Path]) -> Iterator[str]:
    """Lines of all files."""
    for path in data:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from file


if __name__ == "__main__":
    main()
