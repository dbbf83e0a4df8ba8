"""The loader Lightning iterates: one epoch is one iteration is one rollout and its updates.

It is sized and its ``__iter__`` is a lazy generator, so Lightning neither prefetches past an update (the next rollout
would be off-policy) nor rolls out before training starts; calling ``iter()`` has no side effect.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from lit_rlhf.distributed import all_gather_object, rank, world_size
from lit_rlhf.ppo.minibatch import Minibatch
from lit_rlhf.types import DeviceBatch, Experience


class ExperienceSource(ABC):
    """What the loader asks for; ``RolloutDataModule`` is one."""

    @abstractmethod
    def steps_per_epoch(self) -> int:
        """Updates of one iteration that the trainer will take."""

    @abstractmethod
    def collect(self, iteration: int) -> Experience:
        """Generate and score this rank's share of an iteration."""

    @abstractmethod
    def minibatches(self, experience: Experience, iteration: int) -> Iterator[Minibatch]:
        """The updates of an iteration, the same ones however often it is asked."""

    @abstractmethod
    def update_under_way(self) -> bool:
        """Whether the update on the minibatch yielded last is neither done nor skipped yet."""


class RolloutLoader:
    """Yields ``DeviceBatch[Minibatch]``; resumes in the middle of an iteration.

    Args:
        source: Where experience comes from.
        steps: Updates of one iteration.
        sizes: What decides which prompts an iteration takes and how it is cut, by name; a resume compares.

    Attributes:
        iteration: The iteration in progress, or the next one.
    """

    def __init__(self, source: ExperienceSource, steps: int, sizes: Mapping[str, int] | None = None) -> None:
        self._source = source
        self._sizes = dict(sizes or {})
        self._steps = steps
        self._position = 0
        self._experience: Experience | None = None
        self._resumed = False
        self.iteration = 0

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[DeviceBatch[Minibatch]]:
        """Roll out at the first ``next()``, then yield the iteration's minibatches."""
        if not self._resumed:
            if self._position > 0:
                self.iteration += 1
            self._position, self._experience = 0, None
        self._resumed = False
        if self._experience is None:
            self._experience = self._source.collect(self.iteration)
        for minibatch in self._source.minibatches(self._experience, self.iteration):
            if minibatch.position < self._position:
                continue
            self._position = minibatch.position + 1
            yield DeviceBatch(minibatch)

    def state_dict(self) -> dict[str, Any]:
        """Iteration, position and, in the middle of an iteration, the experience of all ranks. A collective.

        The position counts the updates that are done or skipped. One under way is done again after a resume.
        """
        position = self._position - int(not self._resumed and self._source.update_under_way())
        if position >= self._source.steps_per_epoch():
            return {"iteration": self.iteration + 1, "position": 0, "sizes": self._sizes}
        if self._experience is None:
            return {"iteration": self.iteration, "position": 0, "sizes": self._sizes}
        columns = self._experience.to("cpu").as_dict()
        columns["records"] = [dict(record) for record in self._experience.records]
        gathered = all_gather_object(columns)
        return {"iteration": self.iteration, "position": position, "sizes": self._sizes, "experience": gathered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` left off.

        Raises:
            ValueError: If the half-used experience was made by another number of processes, or with other sizes.
        """
        self._compare(state.get("sizes", {}), half_used="experience" in state)
        self.iteration, self._position = state["iteration"], state["position"]
        self._experience, self._resumed = None, True
        stored = state.get("experience")
        if stored is None:
            return
        if len(stored) != world_size():
            raise ValueError(
                f"The checkpoint was written in the middle of an iteration by {len(stored)} processes; resume with as "
                f"many (now: {world_size()}) or from a checkpoint at the end of an iteration."
            )
        columns = dict(stored[rank()])
        columns["records"] = tuple(columns["records"])
        self._experience = Experience(**columns)

    def _compare(self, before: Mapping[str, int], *, half_used: bool) -> None:
        """Tell of sizes that have changed since the checkpoint; refuse them in the middle of an iteration."""
        changed = [k for k in before if k in self._sizes and before[k] != self._sizes[k]]
        if not changed:
            return
        told = ", ".join(f"`{name}` {before[name]} -> {self._sizes[name]}" for name in changed)
        if half_used and changed != ["prompts"]:
            raise ValueError(
                f"The checkpoint is from the middle of an iteration that was made with other sizes ({told}): resume "
                "with those, or from a checkpoint at the end of an iteration."
            )
        warnings.warn(
            f"Resumed with other sizes than before ({told}): from here on other prompts are drawn than in an "
            "undisturbed run, and counts of steps in progress bars and schedules are those of the new sizes.",
            stacklevel=2,
        )
