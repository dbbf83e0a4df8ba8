"""One clear line for every way in which a checkpoint and a run do not fit, with what to do instead.

Left alone, the four mismatches surface as ``IsADirectoryError``, ``FileNotFoundError``, ``ZeRORuntimeException`` and
``KeyError`` from three different libraries.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from lit_rlhf.user_errors import LitRLHFError

WORLD_SIZE_KEY = "world_size"
_SHARDS = "*zero_pp_rank_*_optim_states.pt"


class CheckpointError(LitRLHFError, RuntimeError):
    """A checkpoint could not be written, read or used by this run; the message says what to do."""


def checkpoint_kind(path: str | Path) -> Literal["missing", "file", "zero", "folder"]:
    """What lies at ``path``: nothing, a single file, a DeepSpeed folder, or another folder."""
    path = Path(path)
    if path.is_file():
        return "file"
    if (path / "checkpoint").is_dir():
        return "zero"
    return "folder" if path.is_dir() else "missing"


def zero_world_size(path: str | Path) -> int:
    """Number of ranks that wrote the DeepSpeed folder ``path`` (its optimizer shards)."""
    return len(list((Path(path) / "checkpoint").glob(_SHARDS)))


def require_file(path: str | Path) -> None:
    """Refuse what the single-device and DDP strategies cannot read.

    Raises:
        CheckpointError: If ``path`` is a folder.
        FileNotFoundError: If there is nothing at ``path``.
    """
    kind = checkpoint_kind(path)
    if kind == "missing":
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    if kind == "zero":
        raise CheckpointError(
            f"{path} is a DeepSpeed checkpoint folder of {zero_world_size(path)} rank(s), which this strategy cannot"
            " resume: use the DeepSpeed strategy and the number of devices that wrote it, or `lit-rlhf export` the"
            " weights and start a new run from them."
        )
    if kind == "folder":
        raise CheckpointError(
            f"{path} is a folder and no checkpoint: give a `.ckpt` path (an exported Hugging Face folder goes into"
            " the model's own options instead)."
        )


def require_zero(path: str | Path, *, world_size: int | None) -> None:
    """Refuse what a DeepSpeed strategy of ``world_size`` ranks cannot read (None: any number, weights only).

    Raises:
        CheckpointError: If ``path`` is a single file, another folder, or was written by another number of ranks.
        FileNotFoundError: If there is nothing at ``path``.
    """
    kind = checkpoint_kind(path)
    if kind == "missing":
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    if kind != "zero":
        raise CheckpointError(
            f"{path} is {'a single-file checkpoint' if kind == 'file' else 'no DeepSpeed checkpoint folder'}, which"
            " the DeepSpeed strategies cannot resume: use the strategy that wrote it (single device or `ddp`), or"
            " `lit-rlhf export` the weights and start a new run from them."
        )
    written_by = zero_world_size(path)
    if world_size is not None and written_by != world_size:
        raise CheckpointError(_world_size_line(path, written_by=written_by, world_size=world_size))


def require_training_state(checkpoint: Mapping[str, Any], *, world_size: int | None = None) -> None:
    """Refuse to *continue training* from a checkpoint that holds only weights, or that another number of ranks wrote.

    Call it from ``LightningModule.on_load_checkpoint`` while fitting; evaluation needs neither.

    Args:
        checkpoint: The loaded checkpoint.
        world_size: Number of ranks of this run; None if the module can go on with another number.

    Raises:
        CheckpointError: If there is no state of the training loop or of the optimizer, or if the number of ranks
            that wrote the checkpoint is another one.
    """
    if "loops" not in checkpoint or checkpoint.get("optimizer_states") == []:
        raise CheckpointError(
            "The checkpoint holds weights only (converted or saved without optimizer): it cannot be resumed."
            " `lit-rlhf export` its weights and start a new run from them."
        )
    written_by = checkpoint.get(WORLD_SIZE_KEY, world_size)
    if world_size is not None and written_by != world_size:
        raise CheckpointError(_world_size_line(None, written_by=written_by, world_size=world_size))


def misfit(module: str, own: Mapping[str, Any], given: Mapping[str, Any], error: Exception) -> str:
    """One line for weights that do not fit a module: which parts are missing, too many or of another size.

    Args:
        module: Name of the module's class.
        own: Its weights by name.
        given: The checkpoint's.
        error: What PyTorch said, for a misfit of another kind.
    """
    missing, strange = own.keys() - given.keys(), given.keys() - own.keys()
    shapes = {
        name: (getattr(own[name], "shape", None), getattr(given[name], "shape", None)) for name in own.keys() & given
    }
    sizes = {name for name, (here, there) in shapes.items() if here != there}
    told = ((missing, "it lacks"), (strange, "it has, and the module has not,"), (sizes, "of another size are"))
    found = "; ".join(f"{words} {_parts(names)}" for names, words in told if names) or " ".join(str(error).split())
    return (
        f"The checkpoint does not fit this {module}: {found}. Is it of another module, model, estimator or adapter?"
        " A new run starts from the weights that `lit-rlhf export` writes."
    )


def _parts(names: Collection[str]) -> str:
    """Names of weights by their first part: `critic.* (21)`."""
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"`{part}.*` ({count})" for part, count in sorted(counts.items()))


def _world_size_line(path: str | Path | None, *, written_by: int, world_size: int) -> str:
    return (
        f"{path or 'The checkpoint'} was written by {written_by} rank(s), but this run has {world_size}: resume with"
        f" {written_by} device(s), or `lit-rlhf export` the weights and start a new run from them."
    )
