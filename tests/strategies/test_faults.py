"""Kills, full disks and failing ranks: what is on the disk afterwards, what is said, and what is left running."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from lit_rlhf.strategies import AtomicCheckpointIO, CheckpointError
from lit_rlhf.strategies.checkpoint_io import latest_checkpoint
from tests.distributed_harness import Launch, run_dist
from tests.strategies.toy import STEPS, Toy, fit

pytestmark = pytest.mark.distributed

HEAD = """
    import lit_rlhf.strategies, os, signal
    from tests.strategies.toy import SaveAt, Toy, fit
    strategy, devices, path = {strategy!r}, {devices}, {path!r}
    module = Toy(optimizer="adamw", noise=True)
"""
# Save after step 2, then overwrite the same name after step 3 and die half-way through the (last rank's) write.
KILLED = """
    from lit_rlhf.strategies import checkpoint_io
    class KillIn(SaveAt):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            if trainer.global_step == self.step and trainer.global_rank == {killer}:
                whole = checkpoint_io.torch.save
                def half(content, file, **options):
                    whole(content, file, **options)
                    if not hasattr(file, "name"):  # collectives pickle tensors through torch.save too
                        return
                    file.flush()
                    os.ftruncate(file.fileno(), file.tell() // 2)
                    os.fsync(file.fileno())
                    os.kill(os.getpid(), signal.SIGKILL)
                checkpoint_io.torch.save = half
            super().on_train_batch_end(trainer, pl_module, *rest)
    fit(strategy, ".", devices=devices, module=module, callbacks=[SaveAt(path, 2), KillIn(path, 3)])
"""
# The same, but the kill falls between the two renames of the folder.
KILLED_RENAMING = """
    from pathlib import Path
    class KillBetween(SaveAt):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            if trainer.global_step == self.step:
                move = Path.rename
                def once(self, target):
                    move(self, target)
                    os.kill(os.getpid(), signal.SIGKILL)
                Path.rename = once
            super().on_train_batch_end(trainer, pl_module, *rest)
    fit(strategy, ".", devices=devices, module=module, callbacks=[SaveAt(path, 2), KillBetween(path, 3)])
"""
RESUMED = """
    from pathlib import Path
    from lit_rlhf.strategies.checkpoint_io import latest_checkpoint
    def run(**options):
        return fit(strategy, ".", devices=devices, module=Toy(optimizer="adamw", noise=True), **options)
    record(straight=run())
    record(resumed={{f: run(ckpt_path=str(latest_checkpoint(Path(f) / "ckpt"))) for f in {folders!r}}})
"""
FAILING = """
    class Fail(SaveAt):
        def on_train_batch_end(self, trainer, *rest):
            if trainer.global_step == 2 and trainer.global_rank == 1:
                raise ArithmeticError("the error of rank one")
    fit(strategy, ".", devices=devices, module=module, callbacks=[Fail(path, 2)])
"""
FULL = """
    import resource
    class Full(SaveAt):
        def on_train_batch_end(self, trainer, *rest):
            if trainer.global_step == self.step:
                resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
            super().on_train_batch_end(trainer, *rest)
    fit(strategy, ".", devices=devices, module=module, callbacks=[SaveAt(path, 2), Full(path + "2", 3)])
"""

SETUPS = {"auto": 1, "ddp": 2, "deepspeed_stage_2_cpu": 2}


def start(body: str, tmp_path: Path, strategy: str, *, check: bool = True, **fill: object) -> Launch:
    path = str(tmp_path / "ckpt" / "last.ckpt")
    script = (HEAD + body).format(strategy=strategy, devices=SETUPS[strategy], path=path, **fill)
    return run_dist(script, tmp_path, processes=SETUPS[strategy], check=check, timeout=120)


def assert_resume_as_if_nothing_happened(folders: list[Path], strategy: str, tmp_path: Path) -> None:
    after = start(RESUMED, tmp_path, strategy, folders=[str(f) for f in folders])
    for rank in after.ranks:
        assert len(rank["resumed"]) == len(folders)
        for resumed in rank["resumed"].values():
            assert resumed["step"] == STEPS
            assert resumed["hash"] == rank["straight"]["hash"]


def test_kill_in_the_middle_of_a_file_leaves_the_previous_one(tmp_path: Path) -> None:
    killed = start(KILLED, tmp_path, "auto", check=False, killer=0)
    assert killed.code == -signal.SIGKILL
    assert sorted(p.name for p in (tmp_path / "ckpt").iterdir()) == ["last.ckpt", "last.ckpt.tmp"]
    assert_resume_as_if_nothing_happened([tmp_path], "auto", tmp_path / "after")


def test_kill_while_a_folder_is_written_or_renamed_leaves_the_previous_one(tmp_path: Path) -> None:
    strategy, writing, renaming = "deepspeed_stage_2_cpu", tmp_path / "writing", tmp_path / "renaming"
    left = {}
    for folder, body in ((writing, KILLED), (renaming, KILLED_RENAMING)):
        killed = start(body, folder, strategy, check=False, killer=1)
        assert killed.code != 0
        assert not killed.survivors
        left[folder] = sorted(p.name for p in (folder / "ckpt").iterdir())
    assert left == {writing: ["last.ckpt", "last.ckpt.tmp"], renaming: ["last.ckpt.old", "last.ckpt.tmp"]}
    assert_resume_as_if_nothing_happened([writing, renaming], strategy, tmp_path / "after")


@pytest.mark.parametrize("strategy", ["ddp", "deepspeed_stage_2_cpu"])
def test_a_failing_rank_ends_the_job_with_its_own_error(strategy: str, tmp_path: Path) -> None:
    failed = start(FAILING, tmp_path, strategy, check=False)
    assert failed.code != 0
    assert "ArithmeticError: the error of rank one" in failed.output
    assert not failed.survivors


def test_a_full_disk_ends_a_ddp_job_in_one_line(tmp_path: Path) -> None:
    failed = start(FULL, tmp_path, "ddp", check=False)
    assert failed.code != 0
    assert not failed.survivors
    assert "last.ckpt2 could not be written (File too large). Earlier checkpoints are untouched" in failed.output
    assert [p.name for p in (tmp_path / "ckpt").iterdir()] == ["last.ckpt"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_file_system_is_named_as_such(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], check=False).returncode:
        pytest.skip("no permission to mount")
    try:
        io, target = AtomicCheckpointIO(), mount / "a.ckpt"
        io.save_checkpoint({"x": 1, "state_dict": {}, "pytorch-lightning_version": "2.6.4"}, target)
        with pytest.raises(CheckpointError, match="No space left on device"):
            io.save_checkpoint({"x": torch.zeros(100_000)}, target)
        assert io.load_checkpoint(target)["x"] == 1
        assert [p.name for p in mount.iterdir()] == ["a.ckpt"]
        assert latest_checkpoint(mount) == target
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_the_toy_is_disturbed_by_a_lost_step(tmp_path: Path) -> None:
    whole = fit("auto", tmp_path, module=Toy(optimizer="adamw", noise=True))
    short = fit("auto", tmp_path, module=Toy(optimizer="adamw", noise=True), limit_train_batches=STEPS - 1)
    assert whole["hash"] != short["hash"]
