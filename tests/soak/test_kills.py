"""The soak test's own measurement: what counts as a write of this start."""

from __future__ import annotations

import time
from pathlib import Path

from tests.soak.kills import Watch

TICK = 0.02  # longer than the step of a file system's clock


def test_what_an_earlier_kill_left_is_no_write_and_the_same_name_written_anew_is_one(tmp_path: Path) -> None:
    half = tmp_path / "step=3.ckpt.tmp"
    half.write_text("ha")
    time.sleep(TICK)
    watch = Watch(tmp_path)
    assert not watch.writing()
    assert watch.written() == set()
    half.unlink()
    half.write_text("half")
    assert watch.writing()
    half.rename(tmp_path / "step=3.ckpt")
    assert not watch.writing()
    assert watch.written() == {"step=3.ckpt"}


def test_a_folder_that_is_written_into_is_a_write(tmp_path: Path) -> None:
    half = tmp_path / "checkpoints" / "step=3.ckpt.tmp"
    watch = Watch(half.parent)
    half.mkdir(parents=True)
    assert watch.writing()
    time.sleep(TICK)
    later = Watch(half.parent)
    assert not later.writing()
    (half / "shard.pt").touch()
    assert later.writing()
