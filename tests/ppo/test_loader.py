"""Where a rollout loader goes on after a resume: an update under way is done again, experience is not made again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch

from lit_rlhf.ppo.loader import ExperienceSource, RolloutLoader
from lit_rlhf.ppo.minibatch import Minibatch
from lit_rlhf.types import Experience

STEPS = 3


class Position:
    """All of a minibatch that the loader looks at."""

    def __init__(self, iteration: int, position: int) -> None:
        self.iteration, self.position = iteration, position


class Source(ExperienceSource):
    def __init__(self) -> None:
        self.collected: list[int] = []
        self.under_way = False

    def steps_per_epoch(self) -> int:
        return STEPS

    def collect(self, iteration: int) -> Experience:
        self.collected.append(iteration)
        flat, mask, ids = torch.zeros(1), torch.ones(1, 1, dtype=torch.bool), torch.ones(1, 1, dtype=torch.int64)
        columns: dict[str, Any] = dict.fromkeys(Experience.__dataclass_fields__, flat)
        columns |= {"prompt_ids": ids, "prompt_mask": mask, "records": ({"iteration": iteration},)}
        return Experience(**columns)

    def minibatches(self, experience: Experience, iteration: int) -> Iterator[Minibatch]:
        return iter([cast(Minibatch, Position(iteration, position)) for position in range(STEPS)])

    def update_under_way(self) -> bool:
        return self.under_way


def updates(loader: RolloutLoader, source: Source, *, save_in: int, inside: bool) -> tuple[list[Any], Any]:
    """The updates of two iterations as a trainer does them, and the state saved in (or just after) one of them."""
    seen, state = [], None
    for _ in range(2):
        for batch in loader:
            source.under_way = True
            seen.append((batch.content.iteration, batch.content.position))
            if inside and len(seen) == save_in:
                state = loader.state_dict()
            source.under_way = False
            if not inside and len(seen) == save_in:
                state = loader.state_dict()
    return seen, state


@pytest.mark.parametrize("inside", [False, True], ids=["after the update", "inside it"])
@pytest.mark.parametrize("save_in", range(1, 2 * STEPS + 1))
def test_no_update_is_lost_or_done_twice(save_in: int, inside: bool) -> None:
    source = Source()
    whole, state = updates(RolloutLoader(source, STEPS), source, save_in=save_in, inside=inside)
    again = Source()
    loader = RolloutLoader(again, STEPS)
    loader.load_state_dict(state)
    again.under_way = True  # what a trainer says between loading such a state and its first batch
    assert loader.state_dict() == state
    again.under_way = False
    rest, _ = updates(loader, again, save_in=0, inside=False)
    expected = whole[save_in - int(inside) :]
    assert rest[: len(expected)] == expected
    # The experience is in the state as soon as it is made: making it again would move the reward's moments twice.
    made = {iteration for iteration, _ in expected} - {whole[save_in - 1][0]}
    assert set(again.collected) & {0, 1} == made


def test_other_sizes_are_told_and_refused_in_the_middle_of_an_iteration() -> None:
    loader = RolloutLoader(None, STEPS, {"minibatch_size": 8, "prompts": 3})  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="`minibatch_size` 4 -> 8"):
        loader.load_state_dict({"iteration": 2, "position": 0, "sizes": {"minibatch_size": 4, "prompts": 3}})
    assert loader.iteration == 2
    half_used = {"iteration": 2, "position": 1, "experience": []}
    with pytest.raises(ValueError, match=r"middle of an iteration .* other sizes \(`minibatch_size` 4 -> 8\)"):
        loader.load_state_dict({**half_used, "sizes": {"minibatch_size": 4, "prompts": 3}})
