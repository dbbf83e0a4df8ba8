"""RunCheckpoint: one checkpoint, whole at every moment, from which a run goes on as if it had not been interrupted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest

from lit_rlhf.callbacks import run_checkpoint
from lit_rlhf.callbacks.run_checkpoint import RunCheckpoint
from lit_rlhf.strategies.checkpoint_io import AtomicCheckpointIO, latest_checkpoint
from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer, same, weights

STEPS = 4  # an iteration


class Killed(BaseException):
    """In the place of a SIGKILL."""


class Watch(L.Callback):
    """Stops at a step, and keeps what lies in the folder at every step."""

    def __init__(self, folder: Path, stop: int | None = None) -> None:
        self.folder, self.stop = folder, stop
        self.seen: list[list[str]] = []
        self.validated: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.stop:
            raise Killed
        self.seen.append(names(self.folder))

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.validated.append(trainer.global_step)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoints/*"))


def fit(world: Path, root: Path, *, stop: int | None = None, **options: Any) -> Any:
    """The run in ``root`` from its newest checkpoint on; module and watch."""
    module, watch = make_ppo(world), Watch(root, stop)
    callbacks = [watch, RunCheckpoint(str(root / "checkpoints"), minutes=0)]
    trainer = make_trainer(
        root, max_epochs=2, enable_checkpointing=True, callbacks=callbacks, plugins=[AtomicCheckpointIO()], **options
    )
    data = make_data(world, ppo_epochs=2)
    try:
        trainer.fit(module, data, ckpt_path=latest_checkpoint(root / "checkpoints"), weights_only=True)
    except Killed:
        watch.stop = -1
    return module, watch


def test_the_newest_state_alone_is_kept_inside_epochs_and_at_their_ends(world: Path, tmp_path: Path) -> None:
    _, watch = fit(world, tmp_path)
    # Before each update: none, those inside the first iteration, the one at its end, those inside the second.
    found = [[name for name in seen if name != "last.ckpt"] for seen in watch.seen]
    steps = [*range(STEPS), *range(STEPS, 2 * STEPS)]
    assert found == [[f"epoch={step // STEPS - (step == STEPS)}-step={step}.ckpt"] if step else [] for step in steps]
    assert names(tmp_path) == ["epoch=1-step=8.ckpt", "last.ckpt"]
    assert (tmp_path / "checkpoints" / "last.ckpt").resolve().name == "epoch=1-step=8.ckpt"


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}], ids=["validation at the end", "in the middle"])
@pytest.mark.parametrize("stop", range(1, 2 * STEPS))
def test_a_run_that_is_killed_goes_on_bit_for_bit(world: Path, tmp_path: Path, stop: int, options: Any) -> None:
    whole, straight = fit(world, tmp_path / "whole", **options)
    _, first = fit(world, tmp_path / "killed", stop=stop, **options)
    again, second = fit(world, tmp_path / "killed", **options)
    assert first.stop == -1
    assert same(weights(again), weights(whole))
    # No validation is left out, whatever the step of the kill; one may be done again, after a kill right behind it.
    assert sorted({*first.validated, *second.validated}) == straight.validated
    assert names(tmp_path / "killed") == names(tmp_path / "whole")


def test_a_kill_between_the_save_and_the_removal_leaves_nothing_for_good(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        fit(world, tmp_path, stop=2)
        patch.setattr(RunCheckpoint, "_remove_checkpoint", killed)
        fit(world, tmp_path)
    whole = [name for name in names(tmp_path) if name != "last.ckpt"]
    assert whole == ["epoch=0-step=2.ckpt", "epoch=0-step=3.ckpt"]
    _, watch = fit(world, tmp_path)
    assert [name for name in watch.seen[1] if name != "last.ckpt"] == ["epoch=0-step=4.ckpt"]
    assert names(tmp_path) == ["epoch=1-step=8.ckpt", "last.ckpt"]


def test_only_what_it_wrote_is_removed(world: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("epoch=0-step=1-mine.ckpt", "best-epoch=0-step=2.ckpt", "notes.txt"):
        (folder / name).write_text("the user's")
    fit(world, tmp_path / "other")  # a run that is resumed in another folder
    module, keep = make_ppo(world), RunCheckpoint(str(folder), minutes=0)
    trainer = make_trainer(tmp_path, max_epochs=3, enable_checkpointing=True, callbacks=[keep])
    other = latest_checkpoint(tmp_path / "other" / "checkpoints")
    trainer.fit(module, make_data(world, ppo_epochs=2), ckpt_path=other, weights_only=True)
    assert names(tmp_path / "other") == ["epoch=1-step=8.ckpt", "last.ckpt"]
    mine = ["best-epoch=0-step=2.ckpt", "epoch=0-step=1-mine.ckpt", "notes.txt"]
    assert names(tmp_path) == sorted([*mine, "epoch=2-step=12.ckpt", "last.ckpt"])


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ({"minutes": 1.0}, [3, 4, 7, 8]),  # 75 s after the start; at the epoch's end; 75 s after that
        ({"minutes": 0.4}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"minutes": None}, [4, 8]),
        ({"minutes": None, "every_n_steps": 3}, [3, 4, 6, 8]),
        ({"minutes": None, "every_n_epochs": 2}, [8, 12]),  # the third is the last
        ({"minutes": None, "every_n_epochs": None}, [12]),
        ({"minutes": 2.9, "every_n_epochs": None}, [7, 12]),
        ({"minutes": 1.6, "every_n_epochs": None}, [4, 8, 12]),  # the time has come at an epoch's end
    ],
)
def test_time_and_steps_say_when(world, tmp_path, monkeypatch, options, saved) -> None:
    now, saves = [0.0], []

    class Clock(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            now[0] += 25.0

        def on_save_checkpoint(self, trainer: L.Trainer, *_: Any) -> None:
            saves.append(trainer.global_step)

    monkeypatch.setattr(run_checkpoint, "time", SimpleNamespace(monotonic=lambda: now[0]))
    callbacks = [Clock(), RunCheckpoint(str(tmp_path / "checkpoints"), **options)]
    trainer = make_trainer(tmp_path, max_epochs=2 + (max(saved) > 8), enable_checkpointing=True, callbacks=callbacks)
    trainer.fit(make_ppo(world), make_data(world, ppo_epochs=2))
    assert saves == saved


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"minutes": -1}, r"`minutes` \(-1\) must not be"),
        ({"every_n_steps": 0}, r"`every_n_steps` \(0\) must be at"),
        ({"every_n_epochs": 0}, r"`every_n_epochs` \(0\) must be at"),
        ({"every_n_epochs": 2.5}, r"`every_n_epochs` \(2.5\) must be at least 1, and whole"),
    ],
)
def test_options_are_checked(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        RunCheckpoint(**options)
