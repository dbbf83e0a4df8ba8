"""Prompts in, experience out: the DataModule that generates fresh experience each iteration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from lit_rlhf.callbacks.hooks import emit_phase
from lit_rlhf.config import check_whole, group, require
from lit_rlhf.data.encoding import EncodedRow, PromptEncoder
from lit_rlhf.data.memory import DataLike, in_memory
from lit_rlhf.data.renaming import check_columns
from lit_rlhf.data.report import OnBadRow
from lit_rlhf.data.template import check_template
from lit_rlhf.data.tokenizing import TokenCache, tokenize
from lit_rlhf.datamodules.base import (
    check_wanted,
    load_module_tokenizer,
    tokenizer_path,
    tokenizer_source,
    write_report,
)
from lit_rlhf.datamodules.loader import batch_under_way
from lit_rlhf.datamodules.prompts import EncodedPrompt, PromptLoader, prompt_batch, prompt_lengths
from lit_rlhf.datamodules.ptx import PTXText
from lit_rlhf.datamodules.rows import StoredRows
from lit_rlhf.distributed import rank, world_size
from lit_rlhf.ppo.collector import ExperienceCollector
from lit_rlhf.ppo.config import PTXConfig
from lit_rlhf.ppo.loader import ExperienceSource, RolloutLoader
from lit_rlhf.ppo.minibatch import Minibatch, minibatches
from lit_rlhf.ppo.plan import BatchingConfig, global_rows
from lit_rlhf.randomness import Stream, generator_for
from lit_rlhf.signals import Interrupted
from lit_rlhf.types import Experience, PromptBatch


class RolloutDataModule(L.LightningDataModule, ExperienceSource):
    """Reads prompts; each training epoch is one PPO iteration on freshly generated experience.

    Args:
        tokenizer: Folder or hub name; default: what the trained module loads.
        train: Prompt files, folders or hub names; in Python also prompts themselves: a list of strings, message
            lists or dicts with a ``prompt``, a data set.
        val: The same for validation.
        test: The same for testing.
        predict: The same for prediction; default ``test``.
        format: Format of the rows; recognized from the first ones if not given.
        columns: Our names of columns that have others: ``{"prompt": "question"}``.
        template: Named template for tokenizers without a chat template.
        rollout_batch_size: Responses per iteration, global.
        minibatch_size: Responses an optimizer step, global.
        ppo_epochs: Passes over the rollout.
        micro_batch_tokens: Most tokens of one forward pass; None: 768 on a CPU, 8192 on an accelerator.
        keep_groups: Whether the responses to one prompt share a micro-batch, for losses that compare them.
        max_prompt_length: Longer prompts lose their oldest turns.
        ptx: Text for the language-model loss beside PPO's (eq. 17); None for none.
        eval_batch_size: Prompts a validation step, per rank.
        eval_samples: Responses to each validation and test prompt.
        eval_limit: Use only the first so many validation and test prompts.
        seed: Seed of prompt order, sampling and shuffles.
        on_bad_row: `skip` or `error`.
        cache: Whether token ids are kept on the disk for the next start: null for data of 16 MiB and more.
        cache_dir: Where; default: `lit_rlhf` in the cache of `datasets` (HF_DATASETS_CACHE).

    Raises:
        ValueError: If sizes do not fit each other.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        train: DataLike | None = None,
        val: DataLike | None = None,
        test: DataLike | None = None,
        predict: DataLike | None = None,
        format: str | None = None,
        columns: dict[str, str] | None = None,
        template: str | None = None,
        rollout_batch_size: int = 128,
        minibatch_size: int = 32,
        ppo_epochs: int = 1,
        micro_batch_tokens: int | None = None,
        keep_groups: bool = False,  # noqa: FBT001, FBT002
        max_prompt_length: int = 1024,
        ptx: PTXConfig | None = None,
        eval_batch_size: int = 64,
        eval_samples: int = 1,
        eval_limit: int | None = None,
        seed: int = 0,
        on_bad_row: OnBadRow = "skip",
        cache: bool | None = None,  # noqa: FBT001
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        batches = {"rollout_batch_size": rollout_batch_size, "minibatch_size": minibatch_size, "ppo_epochs": ppo_epochs}
        own = {"max_prompt_length": max_prompt_length, "eval_batch_size": eval_batch_size, "eval_samples": eval_samples}
        optional = {"micro_batch_tokens": micro_batch_tokens, "eval_limit": eval_limit}
        check_whole({**batches, **own, "seed": seed}, optional)
        require(on_bad_row in ("skip", "error"), "on_bad_row", on_bad_row, "must be skip or error")
        self.batching = BatchingConfig(
            **batches, micro_batch_tokens=micro_batch_tokens, keep_groups=keep_groups, seed=seed
        )
        for name, value in own.items():
            require(value >= 1, name, value, "must be at least 1")
        self.tokenizer_path = tokenizer_path(tokenizer)
        self.files = {"train": train, "val": val, "test": test, "predict": test if predict is None else predict}
        self.format, self.template, self.on_bad_row = format, template, on_bad_row
        self.columns, self.cache = check_columns(columns), TokenCache(cache, cache_dir)
        self.max_prompt_length = max_prompt_length
        self.eval_batch_size, self.eval_samples, self.eval_limit = eval_batch_size, eval_samples, eval_limit
        self.seed = seed
        self.ptx = None if ptx is None else group(PTXConfig, ptx, "ptx")
        self._ptx_text: PTXText | None = None
        self._prompts: dict[str, Sequence[EncodedPrompt]] = {}
        self._order: tuple[int, Tensor] = (-1, torch.empty(0, dtype=torch.int64))
        self._loader: RolloutLoader | None = None
        self._tokenizer: Any = None
        self._encoded_for: tuple[Any, ...] | None = None

    # ---------------------------------------------------------------- files to prompts

    def setup(self, stage: str) -> None:
        """Read and encode the prompts of the stage; nothing heavier has been loaded yet.

        A trainer that has trained nothing yet begins at the first iteration, whatever this object was used for before.
        """
        if stage == "fit" and self.trainer is not None and self.trainer.global_step == 0:
            self._loader = None
        tokenizer = tokenizer_source(self, self.tokenizer_path)
        if tokenizer != self._encoded_for:
            self._prompts, self._tokenizer, self._ptx_text = {}, None, None
            self._encoded_for = tokenizer
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ("predict",)):
            if self.files[split] is not None and split not in self._prompts:
                self._prompts[split] = self._read(split)
        if stage == "fit":
            self._check_training()
            if self.ptx is not None and self._ptx_text is None:
                self._ptx_text = PTXText(self.ptx, self._tokenizer, self.cache)
        self._check_context()

    def _read(self, split: str) -> Sequence[EncodedPrompt]:
        if self._tokenizer is None:
            self._tokenizer = load_module_tokenizer(self, self.tokenizer_path)
            check_template(self._tokenizer, self.template)
        data = tokenize(
            self.files[split],
            PromptEncoder(self.template, self.max_prompt_length),
            self._tokenizer,
            format=self.format,
            columns=self.columns,
            cache=self.cache,
        )
        limit = None if split in ("train", "predict") else self.eval_limit
        index = None if limit is None else np.arange(data.counts[:limit].sum())
        prompts = StoredRows.of(data, _prompt, index)
        write_report(self, split, data.report, self.on_bad_row)
        if not prompts:
            given = in_memory(self.files[split]) or self.files[split]
            raise ValueError(f"`data.{split}` ({given}) holds no usable prompt: {data.report.summary()}")
        return prompts

    def _check_training(self) -> None:
        prompts = self._prompts.get("train")
        if not prompts:
            raise ValueError("`data.train` must name at least one prompt file to fit.")
        assert self.trainer is not None
        self.batching = replace(self.batching, group_size=self._module().group_size)
        self.batching.check_world_size(self.trainer.world_size)
        needed = self.batching.rollout_batch_size // self.batching.group_size
        if len(prompts) < needed:
            raise ValueError(
                f"`rollout_batch_size` ({self.batching.rollout_batch_size}) needs {needed} distinct prompts an "
                f"iteration; `train` holds {len(prompts)}."
            )

    def _check_context(self) -> None:
        """Refuse prompts that leave no room for a whole response in the policy's context, before it is loaded."""
        module: Any = None if self.trainer is None else self.trainer.lightning_module
        if not isinstance(module, ExperienceCollector):
            return
        for split, prompts in self._prompts.items():
            width = module.response_length(training=split == "train")
            longest = max(prompt_lengths(prompts))
            try:
                module.check_context(longest + width)
            except ValueError as error:
                raise ValueError(
                    f"`data.{split}` has a prompt of {longest} tokens and `max_response_length` is {width}. {error} "
                    f"Lower `data.max_prompt_length` ({self.max_prompt_length})."
                ) from error

    # ---------------------------------------------------------------- training

    def take(self, iteration: int) -> PromptBatch:
        """This rank's prompts of an iteration: a pure function of seed, iteration, rank and number of ranks."""
        prompts = self._prompts["train"]
        per_iteration = self.batching.rollout_batch_size // self.batching.group_size
        first = iteration * per_iteration
        rows = global_rows(self.batching, rank(), world_size()) // self.batching.group_size
        picked = [prompts[self._shuffled(first + int(g))] for g in rows]
        return replace(prompt_batch(picked, self._tokenizer.pad_token_id), group=rows)

    def _shuffled(self, cursor: int) -> int:
        """Index of the ``cursor``-th prompt ever drawn; every pass over the prompts has its own order."""
        total = len(self._prompts["train"])
        done, offset = divmod(cursor, total)
        if self._order[0] != done:
            generator = generator_for(self.seed, Stream.PROMPTS, done)
            self._order = (done, torch.randperm(total, generator=generator))
        return int(self._order[1][offset])

    def uniforms(self, iteration: int, width: int) -> Tensor:
        """The rollout's random numbers, ``(own rows, width)`` float64: the same rows on any number of ranks."""
        total = self.batching.rollout_batch_size
        generator = generator_for(self.seed, Stream.SAMPLING, iteration)
        drawn = torch.rand(total, width, generator=generator, dtype=torch.float64)
        return drawn[global_rows(self.batching, rank(), world_size())]

    def collect(self, iteration: int) -> Experience:
        """See ``ExperienceSource``: delegates to the module."""
        module = self._module()
        prompts = self.take(iteration).to(self._device())
        uniforms = self.uniforms(iteration, module.response_length(training=True))
        try:
            return module.collect(prompts, uniforms, batching=self.batching, iteration=iteration)
        except Interrupted:
            # The next phase is where the ranks that were not interrupted come to: they agree there to stop.
            assert self.trainer is not None
            emit_phase(self.trainer, self.trainer.lightning_module, "scoring")
            raise

    def minibatches(self, experience: Experience, iteration: int) -> Iterator[Minibatch]:
        """See ``ExperienceSource``."""
        ptx = [] if self._ptx_text is None else self._ptx_text.batches(self.batching, iteration)
        experience = experience.to(self._device())  # a resumed iteration's comes from the checkpoint, on the CPU
        return minibatches(experience, self.batching, iteration, ptx)

    def _module(self) -> ExperienceCollector:
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        if not isinstance(module, ExperienceCollector):
            raise ValueError(
                f"`RolloutDataModule` trains a module that collects experience (PPOModule, or a subclass of "
                f"lit_rlhf.ppo.collector.ExperienceCollector); {type(module).__name__} does not."
            )
        return module

    def _device(self) -> torch.device:
        assert self.trainer is not None
        return self.trainer.lightning_module.device

    def steps_per_epoch(self) -> int:
        """See ``ExperienceSource``: fewer than all with ``limit_train_batches``."""
        limit = self.trainer.num_training_batches if self.trainer is not None else float("inf")
        return int(min(self.batching.steps_per_iteration, limit))

    def update_under_way(self) -> bool:
        """See ``ExperienceSource``: as the trainer counts."""
        return self.trainer is not None and batch_under_way(self.trainer)

    def train_dataloader(self) -> RolloutLoader:
        """The loader of iterations; free of side effects, since Lightning may ask more than once."""
        if self._loader is None:
            names = ("rollout_batch_size", "minibatch_size", "ppo_epochs", "group_size", "seed")
            sizes = {name: getattr(self.batching, name) for name in names}
            sizes["prompts"] = len(self._prompts.get("train", []))
            self._loader = RolloutLoader(self, self.batching.steps_per_iteration, sizes)
        return self._loader

    # ---------------------------------------------------------------- evaluation

    def _eval_loader(self, split: str, samples: int) -> PromptLoader | list[Any]:
        if split not in self._prompts:
            check_wanted(self, split)
            return []
        return PromptLoader(self._prompts[split], self.eval_batch_size, self._tokenizer.pad_token_id, samples)

    def val_dataloader(self) -> PromptLoader | list[Any]:
        """Validation prompts, or nothing."""
        return self._eval_loader("val", self.eval_samples)

    def test_dataloader(self) -> PromptLoader | list[Any]:
        """Test prompts, or nothing."""
        return self._eval_loader("test", self.eval_samples)

    def predict_dataloader(self) -> PromptLoader | list[Any]:
        """Prompts to answer once."""
        return self._eval_loader("predict", 1)


def _prompt(encoded: EncodedRow) -> EncodedPrompt:
    return EncodedPrompt(ids=encoded.columns["ids"], record=encoded.record)
