"""Which rows go into which minibatch, on every rank of every world size."""

from __future__ import annotations

import math

import pytest
import torch

from lit_rlhf.ppo.plan import UNIT, BatchingConfig, global_rows, minibatch_rows

# (minibatch size, group size); the rollout is four minibatches
SIZES = [(8, 1), (24, 1), (12, 1), (6, 1), (7, 1), (32, 4), (24, 2)]


def plan(config: BatchingConfig, world_size: int, *, iteration: int = 0, epoch: int = 0) -> list[list[list[int]]]:
    """Global rows by minibatch and rank."""
    ranks = []
    for rank in range(world_size):
        own = global_rows(config, rank, world_size)
        ranks.append([own[local].tolist() for local in minibatch_rows(config, iteration, epoch, rank, world_size)])
    return [list(minibatch) for minibatch in zip(*ranks, strict=True)]


def rows_of(minibatches: list[list[list[int]]]) -> list[set[int]]:
    return [{row for rank in minibatch for row in rank} for minibatch in minibatches]


def config_of(minibatch: int, group: int) -> BatchingConfig:
    return BatchingConfig(rollout_batch_size=4 * minibatch, minibatch_size=minibatch, group_size=group, seed=3)


def world_sizes(config: BatchingConfig) -> list[int]:
    groups = config.minibatch_size // config.group_size
    return [size for size in range(1, groups + 1) if groups % size == 0]


@pytest.mark.parametrize(("minibatch", "group"), SIZES)
def test_every_row_once_in_whole_groups_and_evenly_over_ranks(minibatch: int, group: int) -> None:
    config = config_of(minibatch, group)
    for world_size in world_sizes(config):
        minibatches = plan(config, world_size)
        rows = rows_of(minibatches)
        assert sorted(row for part in rows for row in part) == list(range(config.rollout_batch_size))
        for part, whole in zip(minibatches, rows, strict=True):
            assert [len(rank) for rank in part] == [minibatch // world_size] * world_size
            assert all(row - row % group + i in whole for row in whole for i in range(group))


@pytest.mark.parametrize(("minibatch", "group"), SIZES)
def test_world_sizes_that_divide_the_unit_make_minibatches_of_the_same_rows(minibatch: int, group: int) -> None:
    config = config_of(minibatch, group)
    unit = math.gcd(minibatch // group, UNIT)
    alone = rows_of(plan(config, 1))
    same = {size for size in world_sizes(config) if rows_of(plan(config, size)) == alone}
    assert same == {size for size in world_sizes(config) if unit % size == 0}


def test_the_shuffle_changes_with_iteration_pass_and_seed() -> None:
    config = config_of(24, 1)
    other_seed = BatchingConfig(rollout_batch_size=96, minibatch_size=24, seed=4)
    plans = [plan(config, 3), plan(config, 3, iteration=1), plan(config, 3, epoch=1), plan(other_seed, 3)]
    assert len({str(p) for p in plans}) == len(plans)
    assert plan(config, 3) == plans[0]


@pytest.mark.parametrize("world_size", [3, 16])
def test_a_split_that_is_uneven_is_refused(world_size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"`minibatch_size` \(32\).*processes \({world_size}\) times `group_size` \(4\)"
    ):
        config_of(32, 4).check_world_size(world_size)
    config_of(32, 4).check_world_size(8)


def test_rows_of_all_ranks_are_the_rollout() -> None:
    config = config_of(24, 2)
    together = torch.cat([global_rows(config, rank, 4) for rank in range(4)])
    assert sorted(together.tolist()) == list(range(96))
