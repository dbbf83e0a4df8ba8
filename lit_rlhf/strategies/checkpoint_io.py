"""Checkpoints that a kill, a full disk or a hostile file cannot turn into a loss.

Lightning's own writer is atomic only when ``$TMPDIR`` is on the checkpoint's file system, and first copies the whole
checkpoint in memory. Here everything is written beside its target, flushed to the disk, and renamed.
"""

from __future__ import annotations

import os
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy
from typing_extensions import override

from lit_rlhf import signals
from lit_rlhf.distributed import world_size
from lit_rlhf.files import is_torch_file
from lit_rlhf.strategies.errors import WORLD_SIZE_KEY, CheckpointError, require_file

_PATH = str | Path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Single-file checkpoints: the target is the old file or the new one, never half of either.

    Use it as ``Trainer(plugins=[AtomicCheckpointIO()])``. Paths with a remote protocol (``s3://...``) go through
    Lightning's own writer. The number of ranks is stored with the checkpoint, so that a resume under another number
    can be refused in one line (:func:`lit_rlhf.strategies.errors.require_training_state`).
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            CheckpointError: If the disk is full or the file cannot be written; what was at ``path`` is still there.
        """
        checkpoint.setdefault(WORLD_SIZE_KEY, world_size())
        if storage_options is not None or not _is_local_file_protocol(str(path)):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with noting_time(), writing(target) as temporary:
            write_through(checkpoint, temporary)
            temporary.replace(target)
            sync_folder(target.parent)

    @override
    def load_checkpoint(
        self, path: _PATH, map_location: Callable[..., Any] | str | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read ``path``; ``weights_only`` is True unless it is switched off by name.

        Raises:
            CheckpointError: If the file is not a whole checkpoint, is another library's or a DeepSpeed folder, or asks
                to run code.
            FileNotFoundError: If there is no such file.
        """
        if not _is_local_file_protocol(str(path)):
            return super().load_checkpoint(path, map_location, weights_only is not False)  # type: ignore[arg-type]
        require_file(path)
        checkpoint: dict[str, Any] = safe_load(path, map_location=map_location, weights_only=weights_only is not False)
        _require_lightnings(checkpoint, path)
        return checkpoint

    @override
    def remove_checkpoint(self, path: _PATH) -> None:
        """Delete ``path`` and what an interrupted write left beside it."""
        super().remove_checkpoint(path)
        for leftover in (temporary_path(path), previous_path(path)):
            remove(leftover)


@contextmanager
def noting_time() -> Iterator[None]:
    """Around the writing of a checkpoint: who signals a run twice is told how long that took."""
    started = time.monotonic()
    yield
    signals.note_save(time.monotonic() - started)


def write_through(content: Any, path: Path, **options: Any) -> None:
    """``torch.save`` to ``path`` and flush it to the disk."""
    # Through a Python file: torch's own C++ writer loses the operating system's reason when it fails.
    with path.open("wb") as file:
        torch.save(content, file, **options)
        file.flush()
        os.fsync(file.fileno())


def keep_checkpoints_whole(strategy: Strategy) -> None:
    """Let a strategy for which the user chose no checkpoint plugin write and read files as :class:`AtomicCheckpointIO`.

    Their format is Lightning's.
    """
    own_kind = type(strategy).checkpoint_io is not Strategy.checkpoint_io
    if strategy._checkpoint_io is None and not own_kind and not isinstance(strategy, DeepSpeedStrategy):
        strategy.checkpoint_io = AtomicCheckpointIO()


def require_checkpoint(path: _PATH, *, weights_only: bool = True) -> None:
    """Refuse a local path at which there is no whole checkpoint of Lightning's; tensors are mapped, not read.

    Raises:
        CheckpointError: See :func:`safe_load`, or it is a folder, or another library's.
        FileNotFoundError: There is nothing.
    """
    if not _is_local_file_protocol(str(path)):
        return
    require_file(path)
    mapped = zipfile.is_zipfile(path)
    _require_lightnings(safe_load(path, weights_only=weights_only, mmap=mapped), path)


def _require_lightnings(content: Any, path: _PATH) -> None:
    keys = ("state_dict", "pytorch-lightning_version")
    missing = keys if not isinstance(content, dict) else [key for key in keys if key not in content]
    if missing:
        raise CheckpointError(f"{path} is no checkpoint of a Lightning run: it has no `{missing[0]}`.")


def safe_load(path: _PATH, *, map_location: Any = "cpu", weights_only: bool = True, mmap: bool = False) -> Any:
    """``torch.load`` that turns its page-long errors into one line.

    Raises:
        CheckpointError: If it is no file of torch's, the pickle would execute code, or the file is truncated.
    """
    if not is_torch_file(path):
        raise CheckpointError(f"{path} is no checkpoint: give a `.ckpt` file that a run has written.")
    try:
        return torch.load(path, map_location=map_location, weights_only=weights_only, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).split("WeightsUnpickler error: ")[-1].strip().split("\n")[0]
        raise CheckpointError(
            f"{path} was refused: loading it would run code or build objects that are not tensors and plain"
            f" values ({reason}). Load only files you trust, and convert them first."
        ) from error
    except (RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path} is not a whole checkpoint ({failure_reason(error)}): resume from an earlier one."
        ) from error


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """The temporary path beside ``target`` to write to; it is removed, and the reason told, when writing fails.

    Raises:
        CheckpointError: In place of the ``OSError`` (or torch's ``RuntimeError`` around it) of the body.
    """
    temporary = temporary_path(target)
    remove(temporary)
    try:
        yield temporary
    except (OSError, RuntimeError) as error:
        reason = failure_reason(error)
        remove(temporary)
        raise CheckpointError(
            f"The checkpoint {target} could not be written ({reason}). Earlier checkpoints are untouched: make room"
            " and resume from the last one."
        ) from error


def failure_reason(error: BaseException) -> str:
    """The operating system's words for a failed write, dug out from under what torch raised on top of them."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error) or type(error).__name__).splitlines()[0]


def latest_checkpoint(*folders: _PATH) -> Path | None:
    """The newest whole checkpoint (file or DeepSpeed folder) in ``folders``; None if there is none.

    Unlike Lightning's ``ckpt_path="last"`` it needs no ``last.ckpt``: that link is replaced in two steps, and a kill
    between them would make the next run start from nothing without an error.
    """
    found: set[Path] = set()
    for folder in map(Path, folders):
        found |= {path.resolve() for path in folder.glob("*.ckpt") if path.exists()}
        # A kill between the two renames of a folder leaves only its predecessor.
        found |= {path.with_suffix("") for path in folder.glob("*.ckpt.old") if not path.with_suffix("").exists()}
    return max(found, key=lambda path: (existing(path).stat().st_mtime_ns, path.name), default=None)


def leftovers(*folders: _PATH) -> list[Path]:
    """What interrupted runs left in ``folders`` and no run will use once there is a newer checkpoint.

    Half-written checkpoints, predecessors, and the checkpoints of preemptions: ours and Lightning's.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        for pattern in ("*.ckpt.tmp", "*.ckpt.old", "interrupted.ckpt", "hpc_ckpt_*.ckpt"):
            found += sorted(folder.glob(pattern))
    return found


def temporary_path(path: _PATH) -> Path:
    """Where ``path`` is written before it is renamed; a fixed name, so that a repeated save reclaims a leftover."""
    return Path(f"{path}.tmp")


def previous_path(path: _PATH) -> Path:
    """Where the predecessor of the folder ``path`` waits during the two renames."""
    return Path(f"{path}.old")


def existing(path: _PATH) -> Path:
    """``path``, or its predecessor when a kill between the two renames left only that."""
    return previous_path(path) if not Path(path).exists() and previous_path(path).exists() else Path(path)


def remove(path: Path) -> None:
    """Delete a file, link or folder; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def replace_folder(source: Path, target: Path) -> None:
    """Put the folder ``source`` in the place of ``target``; at every moment one of target, target.old is whole."""
    previous = previous_path(target)
    if target.exists():
        remove(previous)
        target.rename(previous)
    source.rename(target)
    sync_folder(target.parent)
    remove(previous)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under ``folder`` to the disk."""
    for path in (*folder.rglob("*"), folder):
        sync_folder(path)


def sync_folder(path: Path) -> None:
    """Flush one file or folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
