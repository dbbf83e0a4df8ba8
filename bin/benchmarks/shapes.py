"""The work that is timed: model shapes, a tokenizer trained on the data, prompts, and an end-of-text rate.

Random weights throughout: speed does not depend on what a model has learned, only on shapes and lengths, and lengths
are set by the prompts and by the probability of the end-of-text token.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

PAD, BOS, EOS = range(3)
SPECIAL = ("<pad>", "<s>", "</s>")

# hidden size, layers, heads, intermediate size, vocabulary
PRESETS = {
    "1m": (128, 4, 4, 352, 1024),
    "5m": (256, 4, 8, 704, 4096),
    "15m": (384, 6, 6, 1024, 8192),
    "60m": (640, 8, 10, 1728, 16384),
    "135m": (576, 30, 9, 1536, 49152),
}

STUB = (2, 1, 1, 2, 260)
"""Next to no arithmetic, in about the smallest byte-level vocabulary: what is left is the price of Python."""


def llama_config(preset: str, positions: int, *, layers: int | None = None, stubbed: bool = False) -> Any:
    """A Llama configuration of the preset's shape, or of the stub's, with ``positions`` positions.

    Args:
        preset: Name.
        positions: Most of them.
        layers: Their number; None for the preset's.
        stubbed: The stub in place of the preset.
    """
    from transformers import LlamaConfig

    hidden, usual, heads, intermediate, vocabulary = STUB if stubbed else PRESETS[preset]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=usual if layers is None or stubbed else layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a JSONL file, gzipped or not."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.decode("utf-8").split("\n") if line]


def make_tokenizer(vocabulary: int, texts: Iterable[str], **options: Any) -> Any:
    """A byte-level BPE of at most ``vocabulary`` tokens, trained on ``texts``; ``options`` are of its class."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    names = ("pad_token", "bos_token", "eos_token")
    return PreTrainedTokenizerFast(tokenizer_object=inner, **dict(zip(names, SPECIAL, strict=True)), **options)


def prompt_ids(tokenizer: Any, options: argparse.Namespace, count: int) -> list[list[int]]:
    """``count`` prompts: random ids of one length, or the prompts of preference data cut to their last tokens."""
    import torch

    if options.prompt_dist == "fixed":
        vocabulary = PRESETS[options.preset][-1]
        generator = torch.Generator().manual_seed(options.seed)
        return torch.randint(len(SPECIAL), vocabulary, (count, options.prompt_len), generator=generator).tolist()
    prompts = []
    for row in read_rows(options.data):
        text = row["chosen"]
        end = text.rfind("\n\nAssistant:") + len("\n\nAssistant:")
        prompts.append(tokenizer(text[:end])["input_ids"][-options.prompt_len :])
    return (prompts * math.ceil(count / len(prompts)))[:count]


def set_eos_rate(model: Any, rate: float) -> None:
    """Give a random causal LM an end-of-text probability of about ``rate`` a token; with 0 it never ends.

    The LM head gets a bias and the end-of-text row is zeroed; nothing else changes.
    """
    import torch

    old = model.lm_head
    head = torch.nn.Linear(old.in_features, old.out_features)
    with torch.no_grad():
        head.weight.copy_(old.weight)
        head.bias.zero_()
        head.bias[PAD] = head.bias[EOS] = -1e4
        if rate > 0:
            head.bias[EOS] = math.log(rate * old.out_features / (1 - rate))
            head.weight[EOS].zero_()
    model.lm_head = head


class Clock:
    """Adds up seconds under names: CPU time of the process (fair on a busy machine, one thread) or wall time."""

    def __init__(self, kind: str) -> None:
        self.now: Callable[[], float] = {"cpu": time.process_time, "wall": time.perf_counter}[kind]
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its seconds added under ``name``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start = self.now()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start

        return run

    def take(self) -> dict[str, float]:
        """What has added up; starts again from zero."""
        taken, self.seconds = self.seconds, {}
        return taken


class MemoryPeak(threading.Thread):
    """Peak resident memory while it runs, in MiB (the process's own peak also counts imports and setup)."""

    def __init__(self, every: float = 0.02) -> None:
        super().__init__(daemon=True)
        self.every, self.peak, self._running = every, 0.0, True

    def run(self) -> None:
        """Sample until stopped."""
        while self._running:
            self.peak = max(self.peak, resident_mib())
            time.sleep(self.every)

    def stop(self) -> float:
        """End the thread; the peak in MiB."""
        self._running = False
        self.join()
        return self.peak


def resident_mib() -> float:
    """Resident memory of this process now; where the system does not tell, its peak so far."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Median of every key over the rows (a missing key counts as 0)."""
    keys = sorted({key for row in rows for key in row})
    return {key: round(statistics.median(row.get(key, 0.0) for row in rows), 4) for key in keys}


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    from importlib.metadata import version

    from lit_rlhf import __version__

    return {"lit_rlhf": __version__, **{name: version(name) for name in ("torch", "transformers", "lightning")}}
