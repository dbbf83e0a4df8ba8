"""Reward models and critics: a trunk, and a scalar head from the checkpoint or a new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_rlhf.distributed import rank
from lit_rlhf.models.causal import projector
from lit_rlhf.models.checkpoint import read_tensor, resolve_folder, tensor_keys
from lit_rlhf.models.fingerprint import check_fingerprint
from lit_rlhf.models.loading.pretrained import HEAD_KEYS, as_dtype, load_pretrained
from lit_rlhf.models.scalar import ScalarHead, ScalarModel, sequence_classifier


def load_scalar_model(
    path: str | Path,
    *,
    head: Literal["load", "fresh"],
    lm_head: bool = False,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    check_on: torch.device | str | None = "cpu",
) -> ScalarModel:
    """A reward model or critic.

    Args:
        path: Local folder or hub name. With ``head="load"`` a sequence-classification model with one label
            (``score.weight``) or the MOSS-RLHF layout (``reward_head.weight``); with "fresh" any causal LM too.
        head: Take the head from the checkpoint, or draw a new one (from torch's global generator).
        lm_head: Keep the causal LM's output embedding as well, for the reward model's auxiliary LM loss.
        dtype: Of the trunk's weights; the head is kept in fp32.
        attn_implementation: As in transformers; None takes its default for the architecture.
        gradient_checkpointing: Recompute each layer's activations in backward (active in train mode only).
        trust_remote_code: Run Python files that come with the model.
        check_on: Where a loaded head is checked against the folder's fingerprint: on an accelerator by every rank, on a
            CPU by rank 0 alone; None checks nothing.

    Returns:
        The model, on the CPU.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: No head in the checkpoint, more than one label, a bias, missing weights, a pickle with code, an
            architecture that could not be saved again, or scores that differ from the folder's fingerprint.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    if head not in ("load", "fresh"):
        raise ValueError(f"`head` must be 'load' or 'fresh', not '{head}'.")
    folder = resolve_folder(path, trust_remote_code=trust_remote_code)
    weight = _read_head(folder) if head == "load" else None
    model = load_pretrained(
        AutoModelForCausalLM if lm_head else AutoModel, folder, dtype=dtype, attn_implementation=attn_implementation,
        gradient_checkpointing=gradient_checkpointing, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    sequence_classifier(model.config)
    trunk = model.base_model if lm_head else model
    with _attention_for_the_cpu(model):
        scalar = ScalarModel(trunk, _make_head(weight, model.config), projection=projector(model) if lm_head else None)
        if weight is not None and check_on is not None and (rank() == 0 or torch.device(check_on).type != "cpu"):
            _check_fingerprint(folder, scalar.eval(), as_dtype(dtype), check_on, trust_remote_code=trust_remote_code)
    return scalar


@contextmanager
def _attention_for_the_cpu(model: Any) -> Iterator[None]:
    """Attention that runs anywhere: the checks at load time happen before the model is on its device."""
    wanted = model.config._attn_implementation
    if wanted in ("eager", "sdpa"):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(wanted)


def _read_head(folder: Path) -> Tensor:
    """The head's weight ``(1, H)`` from the checkpoint, fp32."""
    keys = tensor_keys(folder)
    found = [key for key in HEAD_KEYS if key in keys]
    if not found:
        near = [key for key in keys if "head" in key or "score" in key or "classif" in key][:5]
        raise ValueError(
            f"'{folder}' has no scalar head ({' or '.join(HEAD_KEYS)}){_has(near)}. It is not a reward model; for a "
            "new, untrained head say `head: fresh`."
        )
    key = found[0]
    weight = read_tensor(keys[key], key).float()
    if weight.dim() != 2 or weight.size(0) != 1:
        raise ValueError(f"The head of '{folder}' must give 1 score, but `{key}` has shape {tuple(weight.shape)}.")
    bias = key.removesuffix("weight") + "bias"
    if bias in keys:
        raise ValueError(f"The head of '{folder}' has a bias (`{bias}`); only bias-free heads are supported.")
    return weight


def _has(keys: list[str]) -> str:
    return f"; it has {', '.join(keys)}" if keys else ""


def _make_head(weight: Tensor | None, config: Any) -> ScalarHead:
    head = ScalarHead(config.get_text_config().hidden_size)
    if weight is not None:
        if weight.shape != head.weight.shape:
            raise ValueError(f"The head has {weight.size(1)} inputs, the trunk gives {head.in_features}.")
        head.weight = nn.Parameter(weight)
    return head


def _check_fingerprint(
    folder: Path, model: ScalarModel, dtype: torch.dtype, device: torch.device | str, *, trust_remote_code: bool
) -> None:
    from transformers import AutoTokenizer

    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    tokenizer = (
        AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code) if has_tokenizer else None
    )
    check_fingerprint(folder, model, dtype=dtype, tokenizer=tokenizer, device=device)
