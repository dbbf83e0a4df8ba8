"""The loader: lazy, free of side effects, and exact after a resume."""

from __future__ import annotations

import pytest

from lit_rlhf.datamodules.loader import StatefulLoader


def make(epoch=None, log=None):
    def plan(number: int) -> list[int]:
        return [10 * number + i for i in range(4)]

    def collate(item: int) -> int:
        if log is not None:
            log.append(item)
        return item

    return StatefulLoader(plan, collate, epoch=epoch)


def test_iter_does_nothing_until_a_batch_is_asked_for():
    log: list[int] = []
    loader = make(log=log)
    iter(loader)
    iter(loader)
    assert (log, len(loader), loader.state_dict()) == ([], 4, {"epoch": 0, "pos": 0, "batches": 4})
    assert next(iter(loader)) == 0
    assert log == [0]


def test_every_pass_is_the_next_epoch():
    loader = make()
    assert [list(loader) for _ in range(3)] == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]


@pytest.mark.parametrize("used", range(9))
def test_resume_anywhere_goes_on_exactly(used):
    straight = make()
    expected = [b for _ in range(3) for b in straight]
    first, seen = make(), []
    passes = (b for _ in range(3) for b in first)
    for _ in range(used):
        seen.append(next(passes))
    resumed = make()
    resumed.load_state_dict(first.state_dict())
    iter(resumed)  # Lightning calls it more often than it uses it
    for _ in range(3):
        seen += list(resumed)
    assert seen[: len(expected)] == expected


def test_the_trainers_epoch_rules_where_there_is_one():
    current = [0]
    loader = make(epoch=lambda: current[0])
    stream = iter(loader)
    assert [next(stream), next(stream)] == [0, 1]  # the epoch ends early, as under `limit_train_batches`
    current[0] = 1
    state = loader.state_dict()
    assert state == {"epoch": 0, "pos": 2, "batches": 4}
    resumed = make(epoch=lambda: current[0])
    resumed.load_state_dict(state)
    assert list(resumed) == [10, 11, 12, 13]  # a position of another epoch does not count
    again = make(epoch=lambda: 0)
    again.load_state_dict(state)
    assert [list(again), list(again)] == [[2, 3], [0, 1, 2, 3]]


def test_another_number_of_batches_is_told_when_they_are_used() -> None:
    loader = StatefulLoader(lambda epoch: list(range(4)), lambda item: item)
    next(iter(loader))
    state = loader.state_dict()
    other = StatefulLoader(lambda epoch: list(range(6)), lambda item: item)
    other.load_state_dict(state)
    with pytest.warns(UserWarning, match="Resumed with 6 batches an epoch, not 4"):
        assert list(other) == [1, 2, 3, 4, 5]
