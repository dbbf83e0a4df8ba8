#!/usr/bin/env python3
"""Reward-model training speed on one CPU thread: pairs packed with a shared prefix against separate rows.

python bin/bench_pairs.py PAIRS.jsonl.gz --mode packed|sorted|random   (pin one core: taskset -c 0)

The model is a Llama trunk of hidden 256, 4 layers, 8 heads, vocabulary 4096, fp32; a byte-level BPE is trained on the
pairs. A step is 16 pairs (`--rows`): micro-batches, loss, clipping, AdamW. Prints one JSON object; times are CPU time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_rlhf.data.batching import micro_batches
from lit_rlhf.data.loading import read_preferences
from lit_rlhf.datamodules.preference import PreferenceDataModule
from lit_rlhf.models.packed_pairs import pack_pairs, packed_lengths
from lit_rlhf.types import PreferenceBatch


def main() -> None:
    """Time the steps of one mode."""
    args = _arguments()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    data = PreferenceDataModule(
        _tokenizer(args.data), args.data, template="hh", max_length=512, batch_size=args.rows, seed=args.seed
    )
    data.setup()
    trunk, head = _model()
    optimizer = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], lr=1e-4)
    seconds, pairs, real, slots = 0.0, 0, 0, 0
    for step, batch in enumerate(_batches(data, args)):
        start = time.process_time()
        used = _step(trunk, head, optimizer, batch, args)
        if step < args.warmup:
            continue
        seconds += time.process_time() - start
        pairs, slots = pairs + len(batch), slots + used
        real += int(batch.chosen_mask.sum() + batch.rejected_mask.sum())
        if step + 1 == args.warmup + args.steps:
            break
    print(
        json.dumps(
            vars(args)
            | {
                "pairs_per_s": round(pairs / seconds, 2),
                "row_tokens_per_s": round(real / seconds),
                "slots_per_s": round(slots / seconds),
                "row_tokens_per_slot": round(real / slots, 3),
                "row_tokens_per_pair": round(real / pairs, 1),
            }
        )
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--mode", choices=["packed", "sorted", "random"], default="packed")
    parser.add_argument("--rows", type=int, default=16, help="pairs a step")
    parser.add_argument("--micro-tokens", type=int, default=2048, help="budget of a micro-batch (not for random)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _tokenizer(path: str) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((r.raw["chosen"] for r in read_preferences(path)[0]), trainer)
    out = tempfile.mkdtemp(prefix="bench_pairs_")
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(out)
    return out


def _model() -> tuple[Any, nn.Linear]:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=704,
        use_cache=False,
        attn_implementation="sdpa",
    )
    return LlamaModel(config), nn.Linear(256, 1, bias=False)


def _batches(data: PreferenceDataModule, args: argparse.Namespace) -> Any:
    """Length-bucketed batches of the data module, or uniformly random ones."""
    if args.mode != "random":
        return (batch.content for batch in data.train_dataloader())
    rows = data.rows["train"]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed)).tolist()
    return (data.collate([rows[i] for i in order[k : k + args.rows]]) for k in range(0, len(rows), args.rows))


def _step(
    trunk: Any, head: nn.Linear, optimizer: torch.optim.Optimizer, batch: PreferenceBatch, args: argparse.Namespace
) -> int:
    optimizer.zero_grad()
    lengths = packed_lengths(batch) if args.mode == "packed" else batch.chosen_mask.sum(1) + batch.rejected_mask.sum(1)
    budget = 10**9 if args.mode == "random" else args.micro_tokens
    slots = 0
    for part in micro_batches(lengths.tolist(), budget):
        rows = batch.rows(torch.tensor(part))
        chosen, rejected, used = (_packed if args.mode == "packed" else _separate)(trunk, head, rows)
        (-F.logsigmoid(chosen - rejected).sum() / len(batch)).backward()
        slots += used
    torch.nn.utils.clip_grad_norm_(trunk.parameters(), 1.0)
    optimizer.step()
    return slots


def _packed(trunk: Any, head: nn.Linear, rows: PreferenceBatch) -> tuple[Tensor, Tensor, int]:
    pairs = pack_pairs(rows)
    hidden = trunk(
        input_ids=pairs.input_ids, position_ids=pairs.position_ids, attention_mask=pairs.mask_for("sdpa")
    ).last_hidden_state
    at = torch.arange(len(rows))
    ends = (pairs.chosen_last, pairs.rejected_last)
    chosen, rejected = (head(hidden[at, end]).squeeze(-1) for end in ends)
    return chosen, rejected, pairs.input_ids.numel()


def _separate(trunk: Any, head: nn.Linear, rows: PreferenceBatch) -> tuple[Tensor, Tensor, int]:
    """Both sides in one right-padded block, under causal attention without a mask."""
    ends = torch.cat([rows.chosen_mask.sum(1), rows.rejected_mask.sum(1)]) - 1
    width = int(ends.max()) + 1
    sides = (rows.chosen_ids[:, :width], rows.rejected_ids[:, :width])
    ids = torch.cat([F.pad(side, (0, width - side.size(1))) for side in sides])
    hidden = trunk(input_ids=ids).last_hidden_state
    chosen, rejected = head(hidden[torch.arange(len(ids)), ends]).squeeze(-1).chunk(2)
    return chosen, rejected, ids.numel()


if __name__ == "__main__":
    main()
