"""Text for the ptx loss: which rows go with which update is a pure function of seed and iteration."""

from __future__ import annotations

from typing import Any

import torch

from lit_rlhf.data.tokenizing import TokenCache
from lit_rlhf.datamodules.sft import SFTDataModule
from lit_rlhf.distributed import rank, world_size
from lit_rlhf.ppo.config import PTXConfig
from lit_rlhf.ppo.plan import BatchingConfig
from lit_rlhf.randomness import Stream, generator_for
from lit_rlhf.types import TextBatch


class PTXText:
    """Encoded rows of the ptx files.

    Args:
        config: Files, sizes and templates.
        tokenizer: The policy's, with its pad token.
        cache: Whether and where token ids are kept.

    Raises:
        ValueError: If the files hold no usable row.
    """

    def __init__(self, config: PTXConfig, tokenizer: Any, cache: TokenCache) -> None:
        self._config = config
        self._data = SFTDataModule(
            train=config.files,
            format=config.format,
            columns=config.columns,
            cache=cache.use,
            cache_dir=cache.folder,
            template=config.template,
            max_length=config.max_length,
        )
        self._data.separator = config.separator
        self._data.tokenizer = tokenizer
        self._data.setup()
        self._rows = self._data.rows["train"]
        if not self._rows:
            raise ValueError(f"`data.ptx.files` ({config.files}) holds no usable row.")

    def batches(self, batching: BatchingConfig, iteration: int) -> list[tuple[TextBatch, float]]:
        """This rank's rows beside each update, with the learned tokens of the *global* batch of text."""
        size = max(1, round(self._config.batch_ratio * batching.minibatch_size / world_size())) * world_size()
        out = []
        for step in range(batching.steps_per_iteration):
            generator = generator_for(batching.seed, Stream.PTX, iteration, step)
            picks = torch.randint(len(self._rows), (size,), generator=generator).tolist()
            rows = [self._rows[i] for i in picks]
            tokens = float(sum(self._data.learned_tokens(row) for row in rows))
            own = rows[rank() :: world_size()]
            out.append((self._data.collate(own), max(1.0, tokens)))
        return out
