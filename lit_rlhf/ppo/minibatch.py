"""From an iteration's experience to minibatches, each with the statistics of its *global* batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lit_rlhf.distributed import all_gather_object, all_reduce_max, rank, world_size
from lit_rlhf.functional.moments import RunningMoments
from lit_rlhf.ppo.plan import BatchingConfig, minibatch_rows, split_rows
from lit_rlhf.types import Experience, Rollout, TextBatch

UpdatePlan = list[list[Tensor]]
"""Rows of each micro-batch, ``plan[epoch * num_minibatches + minibatch][micro_batch]``: indices of the rank's rows."""


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """One optimizer step's worth of this rank's experience.

    Attributes:
        experience: The rank's rows of the minibatch.
        micro_batches: Row indices into ``experience`` of each forward pass.
        num_tokens: Response tokens of the whole global minibatch: the denominator of every token mean.
        num_responses: Responses of the whole global minibatch.
        advantage_mean: Mean advantage over the global minibatch's response tokens.
        advantage_std: Their standard deviation (the population's).
        iteration: Iteration number.
        position: Index of the minibatch within its iteration; 0 is the first update.
        ptx: This rank's rows of pretraining or SFT text, or None.
        ptx_tokens: Learned tokens of the global ptx batch.
    """

    experience: Experience
    micro_batches: tuple[Tensor, ...]
    num_tokens: float
    num_responses: float
    advantage_mean: float
    advantage_std: float
    iteration: int
    position: int
    ptx: TextBatch | None = None
    ptx_tokens: float = 0.0

    def to(self, device: torch.device | str) -> Minibatch:
        """The same minibatch on ``device``."""
        fields = {**self.__dict__, "experience": self.experience.to(device)}
        fields["ptx"] = None if self.ptx is None else self.ptx.to(device)
        return Minibatch(**fields)

    def __len__(self) -> int:
        return len(self.experience)


def plan_updates(rollout: Rollout, config: BatchingConfig, iteration: int) -> UpdatePlan:
    """Micro-batches of every update of an iteration, as many on each rank.

    Call it on all ranks. The plan depends on nothing but lengths, sizes, seed and iteration.
    """
    lengths = rollout.attention_mask.sum(1).tolist()
    device = rollout.input_ids.device
    budget = config.token_budget(device)
    rows = [
        part
        for epoch in range(config.ppo_epochs)
        for part in minibatch_rows(config, iteration, epoch, rank(), world_size())
    ]
    together = config.group_size if config.keep_groups else 1
    counts = torch.tensor([len(split_rows(lengths, part, budget, group_size=together)) for part in rows])
    counts = all_reduce_max(counts.to(device))
    return [
        split_rows(lengths, part, budget, num_parts=int(count), group_size=together)
        for part, count in zip(rows, counts.tolist(), strict=True)
    ]


def scoring_micro_batches(plan: UpdatePlan, config: BatchingConfig) -> list[Tensor]:
    """The micro-batches of the first pass, over which old log-probabilities are computed so that they are equal."""
    return [rows for minibatch in plan[: config.num_minibatches] for rows in minibatch]


def _token_moments(experience: Experience, rows: Tensor) -> RunningMoments:
    rows = rows.to(experience.response_mask.device)
    mask = experience.response_mask[rows]
    return RunningMoments().update_from(experience.advantages[rows][mask])


def global_token_moments(experience: Experience, plan: UpdatePlan) -> list[RunningMoments]:
    """Count, mean and M2 of the advantages of each global minibatch, merged over ranks in rank order."""
    own = [_token_moments(experience, torch.cat(micro)) for micro in plan]
    gathered = all_gather_object([(m.count, m.mean, m.m2) for m in own])
    merged = []
    for per_rank in zip(*gathered, strict=True):
        moments = RunningMoments()
        for count, mean, m2 in per_rank:
            moments = moments.update(count, mean, m2)
        merged.append(moments)
    return merged


def minibatches(
    experience: Experience, config: BatchingConfig, iteration: int, ptx: Sequence[tuple[TextBatch, float]] = ()
) -> Iterator[Minibatch]:
    """The updates of one iteration, in order.

    Args:
        experience: This rank's rows.
        config: Sizes.
        iteration: Iteration number.
        ptx: One text batch and its global token count an update, or nothing.
    """
    plan = plan_updates(experience, config, iteration)
    moments = global_token_moments(experience, plan)
    for position, (micro, stats) in enumerate(zip(plan, moments, strict=True)):
        rows = torch.cat(micro)
        starts = torch.tensor([0, *[len(m) for m in micro]]).cumsum(0).tolist()
        text, text_tokens = ptx[position] if ptx else (None, 0.0)
        yield Minibatch(
            experience=experience.rows(rows),
            micro_batches=tuple(torch.arange(a, b) for a, b in pairwise(starts)),
            num_tokens=max(1.0, stats.count),
            num_responses=float(config.minibatch_size),
            advantage_mean=stats.mean,
            advantage_std=(stats.m2 / max(1.0, stats.count)) ** 0.5,
            iteration=iteration,
            position=position,
            ptx=text,
            ptx_tokens=text_tokens,
        )


def ptx_share(total: int, part: int, parts: int) -> Tensor:
    """Rows of the text batch that go with micro-batch ``part`` of ``parts``."""
    return torch.arange(total)[part::parts]
