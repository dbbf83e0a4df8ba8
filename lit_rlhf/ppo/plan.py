"""Which rows go into which minibatch and micro-batch of an iteration: a pure function of seed, iteration and lengths.

Sizes are global. Row ``g`` of the global rollout lives on rank ``(g // group_size) % world_size``. Rows are shuffled in
units that hold equally many rows of every rank, so that every rank has equally many in each minibatch. A unit is
``gcd(minibatch_size / group_size, 8)`` groups, and all numbers of ranks that divide it (1, 2, 4 and 8, where a
minibatch is a multiple of 8 groups) make their minibatches of the same rows. Any other number of ranks shuffles units
of one group a rank: minibatches as random, of other rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_rlhf.data.batching import PassTokens, micro_batches
from lit_rlhf.randomness import Stream, generator_for

UNIT = 8  # groups: the ranks of one machine
PASS_TOKENS = PassTokens(cpu=768, accelerator=8192)


@dataclass(frozen=True, kw_only=True)
class BatchingConfig:
    """Sizes of an iteration; both batch sizes are global, split over ranks.

    Attributes:
        rollout_batch_size: Responses per iteration.
        minibatch_size: Responses an optimizer step.
        ppo_epochs: Passes over the rollout.
        micro_batch_tokens: Most tokens (prompt and response, padding included) of one forward pass; None: 768 on a
            CPU, 8192 on an accelerator.
        group_size: Responses to each prompt.
        keep_groups: Whether the responses to one prompt share a micro-batch, for losses that compare them.
        seed: Seed of the shuffle.
    """

    rollout_batch_size: int = 128
    minibatch_size: int = 32
    ppo_epochs: int = 1
    micro_batch_tokens: int | None = None
    group_size: int = 1
    keep_groups: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rollout_batch_size", "minibatch_size", "ppo_epochs", "micro_batch_tokens", "group_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` ({value}) must be at least 1.")
        for big, small in (("rollout_batch_size", "minibatch_size"), ("minibatch_size", "group_size")):
            if getattr(self, big) % getattr(self, small):
                raise ValueError(
                    f"`{big}` ({getattr(self, big)}) must be a multiple of `{small}` ({getattr(self, small)})."
                )

    def check_world_size(self, world_size: int) -> None:
        """Refuse a split that leaves ranks with different numbers of rows.

        Raises:
            ValueError: If ``minibatch_size`` is not a multiple of ``world_size * group_size``.
        """
        if self.minibatch_size % (world_size * self.group_size):
            raise ValueError(
                f"`minibatch_size` ({self.minibatch_size}) is global and must be a multiple of the number of "
                f"processes ({world_size}) times `group_size` ({self.group_size})."
            )

    def token_budget(self, device: torch.device | str) -> int:
        """Most tokens of one forward pass on ``device``: what is configured, or what suits the kind of device."""
        return PASS_TOKENS.on(device, self.micro_batch_tokens)

    @property
    def num_minibatches(self) -> int:
        """Optimizer steps of one pass over the rollout."""
        return self.rollout_batch_size // self.minibatch_size

    @property
    def steps_per_iteration(self) -> int:
        """Optimizer steps of one iteration."""
        return self.ppo_epochs * self.num_minibatches


def global_rows(config: BatchingConfig, rank: int, world_size: int) -> Tensor:
    """Global indices of this rank's rows in order, ``(rollout_batch_size / world_size,)`` int64."""
    rows = torch.arange(config.rollout_batch_size)
    return rows[(rows // config.group_size) % world_size == rank]


def minibatch_rows(config: BatchingConfig, iteration: int, epoch: int, rank: int, world_size: int) -> list[Tensor]:
    """This rank's rows (local indices) of each minibatch of one pass.

    Args:
        config: Sizes and seed.
        iteration: Iteration number, for the shuffle.
        epoch: Pass over the rollout, for the shuffle.
        rank: This process.
        world_size: Number of processes.

    Returns:
        ``num_minibatches`` tensors of ``minibatch_size / world_size`` int64 indices into the rank's own rows.
    """
    unit = _unit(config, world_size)
    unit_rows, size = unit * config.group_size, config.minibatch_size
    num_units = config.rollout_batch_size // unit_rows
    order = torch.randperm(num_units, generator=generator_for(config.seed, Stream.MINIBATCHES, iteration, epoch))
    rows = (order[:, None] * unit_rows + torch.arange(unit_rows)).flatten()
    owner = (rows // config.group_size) % world_size
    local = (rows // (config.group_size * world_size)) * config.group_size + rows % config.group_size
    return [part[own == rank] for part, own in zip(local.view(-1, size), owner.view(-1, size), strict=True)]


def _unit(config: BatchingConfig, world_size: int) -> int:
    """Groups that are shuffled as one: a multiple of ``world_size``, the same for as many world sizes as possible."""
    unit = math.gcd(config.minibatch_size // config.group_size, UNIT)
    return world_size if unit % world_size else unit


def split_rows(
    lengths: Sequence[int], rows: Tensor, max_tokens: int, num_parts: int | None = None, *, group_size: int = 1
) -> list[Tensor]:
    """Micro-batches of ``rows`` by token budget, sorted by length.

    Args:
        lengths: Tokens of every local row.
        rows: The rows to split; with groups, whole ones next to each other.
        max_tokens: Budget of one micro-batch; a group that is larger is alone.
        num_parts: Exactly how many parts to make, so that every rank makes the same number of backward passes;
            None for as few as the budget allows.
        group_size: Rows that must stay together; 1 keeps nothing together.

    Returns:
        Row indices (into the rank's rows) of each micro-batch.
    """
    groups = rows.view(-1, group_size)
    longest = [max(lengths[i] for i in group) for group in groups.tolist()]
    # A group costs its rows times the longest row of the batch, so the budget is counted in groups.
    parts = micro_batches(longest, max(1, max_tokens // group_size), num_parts=num_parts)
    return [groups[torch.tensor(part, dtype=torch.long)].flatten() for part in parts]
