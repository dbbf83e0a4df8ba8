"""A small Llama from scratch with a byte-level BPE tokenizer trained on your files, as a Hugging Face folder.

For trying the pipeline on real text without a model hub; for anything else start from a pretrained model.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator
from pathlib import Path

PRESETS = {
    "1m": (128, 4, 4, 352, 1024),
    "5m": (256, 4, 8, 704, 4096),
    "15m": (384, 6, 6, 1024, 8192),
    "60m": (640, 8, 10, 1728, 16384),
}
"""Width, layers, heads, feed-forward width, vocabulary."""


def main() -> None:
    """Train the tokenizer, draw the weights, write both."""
    parser = argparse.ArgumentParser(description=__doc__)
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
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from lit_rlhf.models.loading.pretrained import quiet

    width, layers, heads, inner, vocabulary = PRESETS[preset]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(lines(data), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=context
    )
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=context,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    with quiet():
        LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)


def lines(data: list[Path]) -> Iterator[str]:
    """Lines of all files."""
    for path in data:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from file


if __name__ == "__main__":
    main()
