"""`lit-rlhf export CKPT OUT`: a checkpoint, file or ZeRO folder, as a Hugging Face folder; one process, no GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_rlhf.commands.arguments import CommandParser
from lit_rlhf.models.adapters import adapter_head, is_adapter_folder
from lit_rlhf.models.checkpoint import load_pickle
from lit_rlhf.models.export import (
    export_policy,
    export_policy_adapter,
    export_scalar,
    export_scalar_adapter,
    extract_submodule_state,
)
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.models.loading.tokenizer import load_tokenizer
from lit_rlhf.models.trained import policy_from_checkpoint, scalar_from_checkpoint

STATE_KEY = "lit_rlhf"
PARTS = {"policy": "policy", "critic": "critic", "reward": "reward_model"}


def main(argv: Sequence[str]) -> None:
    """Export and say where.

    Raises:
        FileNotFoundError: There is no such checkpoint, or its source has moved.
        ValueError: It is not a checkpoint of this library, or has no such part.
    """
    parser = CommandParser(
        "export", "A checkpoint, file or ZeRO folder, as a Hugging Face folder; one process, no GPU."
    )
    parser.add_argument("checkpoint", type=Path, help=".ckpt file, the folder of a ZeRO checkpoint, or of an adapter")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--part", choices=sorted(PARTS), help="what to export (default: policy, else the reward model)")
    parser.add_argument("--source", help="folder the model was loaded from, if it has moved since")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="dtype of the written weights")
    parser.add_argument("--pad_token", help="as in the training config, in place of the tokenizer's own")
    parser.add_argument("--merge", action="store_true", help="add an adapter to its base and write a whole model")
    args = parser.parse_args(argv)
    part = export_checkpoint(
        args.checkpoint,
        args.out,
        part=args.part,
        source=args.source,
        dtype=args.dtype,
        pad_token=args.pad_token,
        merge=args.merge,
    )
    print(f"{part}: {args.out}")  # noqa: T201


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    part: str | None = None,
    source: str | None = None,
    dtype: str | None = None,
    pad_token: str | None = None,
    merge: bool = False,
) -> str:
    """Write one part of a checkpoint as a Hugging Face folder.

    Args:
        checkpoint: A single-file Lightning checkpoint or a DeepSpeed ZeRO folder, written by this library; or an
            adapter's folder, to merge it.
        out: Folder to write; replaced only if it is a model folder.
        part: `policy`, `critic` or `reward`; None for the policy, else the reward model.
        source: Where architecture and tokenizer are read from; None for what the checkpoint says.
        dtype: Of the written weights; None keeps them.
        pad_token: In place of the tokenizer's own.
        merge: Add an adapter to its base and write a whole model; without, an adapter's folder is written.

    Returns:
        The part that was written.

    Raises:
        FileNotFoundError: There is no such checkpoint, or its source has moved.
        ValueError: It is not a checkpoint of this library, or has no such part.
    """
    kind = None if dtype is None else getattr(torch, dtype)
    if is_adapter_folder(checkpoint):
        return _merge_folder(checkpoint, out, kind=kind, pad_token=pad_token, merge=merge)
    content = read_checkpoint(checkpoint)
    state, about = content["state_dict"], content[STATE_KEY]
    present = [name for name, prefix in PARTS.items() if any(key.startswith(f"{prefix}.") for key in state)]
    chosen = part or next((name for name in ("policy", "reward") if name in present), "policy")
    if chosen not in present:
        raise ValueError(f"{checkpoint} has no part `{chosen}`; it has {', '.join(present) or 'none'}.")
    weights = extract_submodule_state(state, PARTS[chosen])
    origin = source or about["sources"].get(chosen) or about["sources"]["policy"]
    tokenizer = load_tokenizer(source or about["sources"]["tokenizer"], pad_token=pad_token)
    template, loading = about.get("template"), about.get("loading", {}).get(chosen) or {}
    adapter = loading.get("adapter")
    if dtype is not None and adapter and not merge:
        raise ValueError(f"`dtype` ({dtype}) is of a whole model's weights; for an adapter it needs `--merge`.")
    if adapter and merge:  # onto the base's own weights, not onto them in four bits
        loading = {**loading, "adapter": {**adapter, "base": None}}
    model = (policy_from_checkpoint if chosen == "policy" else scalar_from_checkpoint)(origin, weights, loading)
    if adapter and not merge:
        write = export_policy_adapter if chosen == "policy" else export_scalar_adapter
        write(model, tokenizer, out, template=template)
    else:
        whole = export_policy if chosen == "policy" else export_scalar
        whole(model, tokenizer, out, dtype=kind, template=template)
    return chosen


def _merge_folder(folder: Path, out: Path, *, kind: torch.dtype | None, pad_token: str | None, merge: bool) -> str:
    """A whole model out of an adapter's folder; the part that it is."""
    if not merge:
        raise ValueError(f"'{folder}' is an adapter's folder already; with `--merge` it becomes a whole model's.")
    tokenizer = load_tokenizer(folder, pad_token=pad_token)
    if adapter_head(folder) is None:
        export_policy(load_causal_lm(folder, dtype="float32"), tokenizer, out, dtype=kind)
        return "policy"
    export_scalar(load_scalar_model(folder, head="load", dtype="float32"), tokenizer, out, dtype=kind)
    return "reward"


def read_checkpoint(path: Path) -> Mapping[str, Any]:
    """State dict and what the library stored about it, tensors and primitives only.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        CheckpointError: It is a ZeRO checkpoint of which a shard would execute code, or is damaged.
        ValueError: It was not written by this library, would execute code, or is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    content = _read_zero(path) if path.is_dir() else load_pickle(path)
    if STATE_KEY not in content or "state_dict" not in content:
        raise ValueError(f"{path} was not written by lit_rlhf: it does not say what its parts were loaded from.")
    return content


def _read_zero(path: Path) -> dict[str, Any]:
    if not (path / "latest").is_file():
        raise ValueError(f"{path} is not a DeepSpeed checkpoint folder: it has no file `latest`.")
    from lit_rlhf.strategies.zero_engine import consolidated_state

    content, weights = consolidated_state(path, "checkpoint")
    return {**content, "state_dict": weights}
