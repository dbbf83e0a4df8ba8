"""The loader that every data module hands to Lightning: sized, lazy, resumable in the middle of an epoch.

Not a ``DataLoader``: batches are built from rows already in memory, and Lightning neither prefetches from it nor
replaces its sampler. ``__iter__`` may be called several times an epoch (Lightning calls it up to three times) and does
nothing until the first batch is asked for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import lightning as L

BatchT = TypeVar("BatchT")
PlanT = TypeVar("PlanT")


class StatefulLoader(Generic[PlanT, BatchT]):
    """Batches as a pure function of the epoch, with a position that a checkpoint can hold.

    Args:
        plan: Epoch number to the list of what each batch is made of (say, row indices). Pure, and of the same length
            on every rank.
        collate: One item of the plan to the batch.
        epoch: Where the epoch number comes from (the trainer's); None counts the passes over the loader.
        under_way: Whether the step on the batch handed out last is still to be done: after a resume it is done again.
            None: a batch handed out is a batch used.
    """

    def __init__(
        self,
        plan: Callable[[int], Sequence[PlanT]],
        collate: Callable[[PlanT], BatchT],
        *,
        epoch: Callable[[], int] | None = None,
        under_way: Callable[[], bool] | None = None,
    ) -> None:
        self._plan = plan
        self._collate = collate
        self._trainer_epoch = epoch
        self._under_way = under_way
        self._epoch = 0
        self._pos = 0
        self._resumed = False
        self._batches_before: int | None = None
        self._planned: tuple[int, Sequence[PlanT]] | None = None

    def __len__(self) -> int:
        return len(self._batches(self._next_epoch()))

    def __iter__(self) -> Iterator[BatchT]:
        return self._run()

    def _run(self) -> Iterator[BatchT]:
        epoch = self._next_epoch()
        # a loaded position counts once, and only for the epoch it was saved in
        start = self._pos if self._resumed and epoch == self._epoch else 0
        self._resumed = False
        batches = self._batches(epoch)
        self._tell_of_other_batches(len(batches))
        for pos in range(start, len(batches)):
            self._epoch, self._pos = epoch, pos + 1
            yield self._collate(batches[pos])

    def _next_epoch(self) -> int:
        if self._trainer_epoch is not None:
            return self._trainer_epoch()
        return self._epoch if self._resumed or self._pos == 0 else self._epoch + 1

    def _batches(self, epoch: int) -> Sequence[PlanT]:
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, self._plan(epoch))
        return self._planned[1]

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches were used; a finished epoch is the next one's start."""
        pos = self._pos
        if self._under_way is not None and not self._resumed:
            pos -= int(self._under_way())
        batches = len(self._batches(self._epoch))
        if pos and pos >= batches:
            return {"epoch": self._epoch + 1, "pos": 0, "batches": batches}
        return {"epoch": self._epoch, "pos": pos, "batches": batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self._epoch, self._pos = int(state["epoch"]), int(state["pos"])
        self._resumed = True
        self._batches_before = state.get("batches")

    def _tell_of_other_batches(self, now: int) -> None:
        before, self._batches_before = self._batches_before, None
        if before not in (None, now):
            warnings.warn(
                f"Resumed with {now} batches an epoch, not {before}: batch sizes or data have changed, so that "
                "from here on rows come in another order than in an undisturbed run.",
                stacklevel=2,
            )


def batch_under_way(trainer: L.Trainer) -> bool:
    """Whether a training batch was handed out whose step is still to be done; false once ``on_train_batch_end`` runs.

    A checkpoint may be written at either moment: inside the step (a loss that is not finite) or after it.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(progress.ready > progress.processed)
