"""Single-file checkpoints and the lines that say what does not fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry

import lit_rlhf.strategies
from lit_rlhf.strategies import AtomicCheckpointIO, CheckpointError, CPUZeroStrategy, ZeroStrategy
from lit_rlhf.strategies.checkpoint_io import (
    keep_checkpoints_whole,
    latest_checkpoint,
    replace_folder,
    require_checkpoint,
)
from lit_rlhf.strategies.errors import checkpoint_kind, misfit, require_file, require_training_state, require_zero
from tests.strategies import checks
from tests.strategies.toy import SaveAt, Toy, fit

OF_A_RUN: dict[str, Any] = {"state_dict": {}, "pytorch-lightning_version": "2.6.4"}


def zero_folder(path: Path, *, ranks: int = 2) -> Path:
    (path / "checkpoint").mkdir(parents=True)
    for rank in range(ranks):
        (path / "checkpoint" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    return path


def test_round_trip_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "new" / "a.ckpt"
    for value in (1.0, 2.0):
        io.save_checkpoint({**OF_A_RUN, "x": torch.full((3,), value)}, path)
    assert io.load_checkpoint(path)["x"].tolist() == [2.0] * 3
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]
    io.remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


def test_storage_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt", storage_options={})


@pytest.mark.parametrize("keep", [0, 10, 200])
def test_half_a_file_is_named_as_such(keep: int, tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "a.ckpt"
    io.save_checkpoint({**OF_A_RUN, "x": torch.zeros(100)}, path)
    os.truncate(path, keep)
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        io.load_checkpoint(path)


def test_code_in_a_pickle_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "a.ckpt"
    io.save_checkpoint({**OF_A_RUN, "x": 1}, path)
    checks.plant_code(path)
    with pytest.raises(CheckpointError, match=r"was refused: loading it would run code.*print") as caught:
        io.load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "CODE RAN" not in capsys.readouterr().out
    io.load_checkpoint(path, weights_only=False)  # switched off by name: the user's own decision
    assert "CODE RAN" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"trainer: {}\n", b"\x10\0\0\0\0\0\0\0{}", {"x": 1}, [1]], ids=str)
def test_files_of_another_kind_are_named_as_such(content: Any, tmp_path: Path) -> None:
    """A config, safetensors, another library's, no mapping at all."""
    path = tmp_path / "x.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    told = "is no checkpoint: give" if isinstance(content, bytes) else "no checkpoint of a Lightning run: it has"
    for read in (AtomicCheckpointIO().load_checkpoint, require_checkpoint):
        with pytest.raises(CheckpointError, match=told):
            read(path)


def test_single_device_says_what_to_do_with_a_zero_folder(tmp_path: Path) -> None:
    folder = zero_folder(tmp_path / "z.ckpt", ranks=4)
    error = checks.error_of(lambda: fit("auto", tmp_path, module=Toy(), ckpt_path=str(folder)))
    assert error.startswith("CheckpointError: ")
    assert "DeepSpeed checkpoint folder of 4 rank(s)" in error
    assert "`lit-rlhf export`" in error


def test_weights_alone_cannot_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    torch.save({"state_dict": Toy().state_dict(), "pytorch-lightning_version": "2.6.4", "rng": []}, path)
    error = checks.error_of(lambda: fit("auto", tmp_path, module=Toy(), ckpt_path=str(path)))
    assert "holds weights only" in error


def test_another_number_of_ranks_cannot_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    fit("auto", tmp_path, module=Toy(), callbacks=[SaveAt(path, 2)])
    torch.save({**torch.load(path), "world_size": 8}, path)
    error = checks.error_of(lambda: fit("auto", tmp_path, module=Toy(), ckpt_path=str(path)))
    assert "was written by 8 rank(s), but this run has 1: resume with 8 device(s)" in error


@pytest.mark.parametrize(
    ("check", "match"),
    [
        (lambda p: require_file(p / "none.ckpt"), "There is no checkpoint at"),
        (lambda p: require_file(p), "is a folder and no checkpoint"),
        (lambda p: require_zero(p / "none.ckpt", world_size=2), "There is no checkpoint at"),
        (lambda p: require_zero(p, world_size=2), "is no DeepSpeed checkpoint folder"),
        (
            lambda p: require_zero(zero_folder(p / "z.ckpt"), world_size=1),
            r"written by 2 rank\(s\), but this run has 1",
        ),
        (lambda p: require_training_state({"state_dict": {}}, world_size=1), "holds weights only"),
    ],
)
def test_mismatches_end_in_one_line(check: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises((CheckpointError, FileNotFoundError), match=match) as caught:
        check(tmp_path)
    assert "\n" not in str(caught.value)


def test_any_number_of_ranks_may_read_weights(tmp_path: Path) -> None:
    folder = zero_folder(tmp_path / "z.ckpt")
    require_zero(folder, world_size=None)
    require_zero(folder, world_size=2)
    assert checkpoint_kind(folder) == "zero"


def test_latest_checkpoint_ignores_what_was_never_finished(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for age, name in enumerate(["c.ckpt", "b.ckpt", "a.ckpt.tmp", "d.ckpt.old"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (100 + age, 100 + age))
    (tmp_path / "last.ckpt").symlink_to("c.ckpt")
    assert latest_checkpoint(tmp_path) == tmp_path / "d.ckpt"  # only its predecessor is there: loading finds it
    (tmp_path / "d.ckpt.old").unlink()
    assert latest_checkpoint(tmp_path) == tmp_path / "b.ckpt"


def test_replacing_a_folder_reclaims_an_old_leftover(tmp_path: Path) -> None:
    for name in ("new", "old", "old.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["new"]


def test_strategies_have_names_and_limits() -> None:
    lit_rlhf.strategies.register_strategies()
    assert StrategyRegistry["lit_deepspeed_stage_2"]["strategy"] is ZeroStrategy
    assert StrategyRegistry["lit_deepspeed_stage_2_offload"]["init_params"] == {"offload_optimizer": True}
    assert StrategyRegistry["deepspeed_stage_2_cpu"]["strategy"] is CPUZeroStrategy
    with pytest.raises(ValueError, match=r"`stage` \(3\)"):
        CPUZeroStrategy(stage=3)
    with pytest.raises(ValueError, match=r"`grad_accum_dtype` \(fp32\) in the DeepSpeed configuration needs `stage` 2"):
        CPUZeroStrategy(
            config={"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}},
        )


def test_a_strategy_with_a_writer_of_its_own_keeps_it() -> None:
    class Own(SingleDeviceStrategy):
        checkpoint_io = property(lambda self: "mine", lambda self, io: pytest.fail("replaced"))

    keep_checkpoints_whole(Own("cpu"))
    plain = SingleDeviceStrategy("cpu")
    keep_checkpoints_whole(plain)
    assert isinstance(plain.checkpoint_io, AtomicCheckpointIO)


def test_a_misfit_that_is_none_of_names_and_sizes_is_told_in_pytorchs_words() -> None:
    own, given = {"a.x": torch.ones(2), "a._extra_state": {"n": 1}}, {"a.x": torch.ones(2), "a._extra_state": {"n": 2}}
    assert "this M: no such place." in misfit("M", own, given, RuntimeError("no such\nplace"))
    assert "of another size are `a.*` (1)" in misfit("M", own, {**given, "a.x": torch.ones(3)}, RuntimeError("x"))
