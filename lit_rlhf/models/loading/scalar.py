"""Reward models and critics: a trunk, and a scalar head from the checkpoint or a new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_rlhf.distributed import rank
from lit_rlhf.models.adapters import adapter_head
from lit_rlhf.models.causal import projector, unwrap
from lit_rlhf.models.checkpoint import read_tensor, resolve_folder, tensor_keys
from lit_rlhf.models.fingerprint import check_fingerprint
from lit_rlhf.models.loading.origin import Origin, origin, with_file
from lit_rlhf.models.loading.pretrained import HEAD_KEYS, as_dtype
from lit_rlhf.models.loading.tokenizer import TOKENIZER_FILE
from lit_rlhf.models.loading.whole import load_whole
from lit_rlhf.models.scalar import ScalarHead, ScalarModel, sequence_classifier


def load_scalar_model(
    path: str | Path,
    *,
    head: Literal["load", "fresh"],
    lm_head: bool = False,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    num_layers: int | None = None,
    check_on: torch.device | str | None = "cpu",
) -> ScalarModel:
    """A reward model or critic with weights of its own.

    Args:
        path: Local folder or hub name; an adapter is merged into a copy of its base. With ``head="load"`` a
            sequence-classification model with one label (``score.weight``), the MOSS-RLHF layout
            (``reward_head.weight``) or an adapter with a head; with "fresh" any causal LM too.
        head: Take the head from the checkpoint, or draw a new one (from torch's global generator).
        lm_head: Keep the causal LM's output embedding as well, for the reward model's auxiliary LM loss.
        dtype: Of the trunk's weights; None: the run's (``loading_in``), fp32 outside of one. The head is kept in fp32.
        attn_implementation: As in transformers; None takes its default for the architecture.
        gradient_checkpointing: Recompute each layer's activations in backward (active in train mode only).
        trust_remote_code: Run Python files that come with the model.
        num_layers: Keep the first layers of the trunk alone; for a fresh head.
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

    weight = head_weight(origin(path, trust_remote_code=trust_remote_code), head, num_layers)
    model = load_whole(
        AutoModelForCausalLM if lm_head else AutoModel, path, dtype=dtype, attn_implementation=attn_implementation,
        gradient_checkpointing=gradient_checkpointing, trust_remote_code=trust_remote_code, num_layers=num_layers,
    )  # fmt: skip
    trunk = model.base_model if lm_head else model
    scalar = scalar_model(model, trunk, weight, lm_head=lm_head)
    if weight is not None:
        verify(path, scalar, as_dtype(dtype), check_on, trust_remote_code=trust_remote_code)
    return scalar


def head_weight(found: Origin, head: str, num_layers: int | None = None) -> Tensor | None:
    """The head's weight ``(1, H)`` fp32 from where ``head`` says; None for a fresh one.

    Raises:
        ValueError: No head in the checkpoint, more than one label, a bias, or a cut trunk under a trained head.
    """
    if head not in ("load", "fresh"):
        raise ValueError(f"`head` must be 'load' or 'fresh', not '{head}'.")
    if head == "fresh":
        return None
    if num_layers is not None:
        raise ValueError(f"`num_layers` ({num_layers}) needs a fresh head: a trained one reads the last layer.")
    stored = None if found.adapter is None else adapter_head(found.adapter)
    return _read_head(found.base) if stored is None else stored.float()


def scalar_model(model: Any, trunk: Any, weight: Tensor | None, *, lm_head: bool) -> ScalarModel:
    """Trunk and head put together.

    Args:
        model: The transformers model as it was loaded, for its configuration and LM head.
        trunk: Its base model, PEFT-wrapped or not.
        weight: Of the head; None for a fresh one.
        lm_head: Keep the output embedding of ``model``.

    Raises:
        ValueError: The head does not fit, or the architecture could not be saved again.
    """
    sequence_classifier(model.config)
    with _attention_for_the_cpu(model):
        return ScalarModel(trunk, _make_head(weight, model.config), projection=projector(model) if lm_head else None)


def verify(
    path: str | Path,
    scalar: ScalarModel,
    dtype: torch.dtype | None,
    check_on: torch.device | str | None,
    *,
    trust_remote_code: bool,
) -> None:
    """Hold a loaded model against its folder's fingerprint: on an accelerator on every rank, on a CPU on rank 0.

    Args:
        path: Where the model was loaded from.
        scalar: The model; left in eval mode, as transformers leaves what it loads.
        dtype: Of its weights; None for four bits.
        check_on: Where to score; None checks nothing.
        trust_remote_code: Run Python files that come with the tokenizer.

    Raises:
        ValueError: Its scores or its tokens are others than at export.
    """
    if check_on is None or (rank() != 0 and torch.device(check_on).type == "cpu"):
        return
    with _attention_for_the_cpu(scalar):
        _check_fingerprint(path, scalar.eval(), dtype, check_on, trust_remote_code=trust_remote_code)


@contextmanager
def _attention_for_the_cpu(model: Any) -> Iterator[None]:
    """Attention that runs anywhere: the checks at load time happen before the model is on its device."""
    wanted = model.config._attn_implementation
    if wanted in ("eager", "sdpa"):
        yield
        return
    inner = unwrap(model.trunk) if isinstance(model, ScalarModel) else model
    inner.set_attn_implementation("eager")
    try:
        yield
    finally:
        inner.set_attn_implementation(wanted)


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
    path: str | Path,
    model: ScalarModel,
    dtype: torch.dtype | None,
    device: torch.device | str,
    *,
    trust_remote_code: bool,
) -> None:
    from transformers import AutoTokenizer

    folder = resolve_folder(path, trust_remote_code=trust_remote_code, weights=False)
    place = with_file(path, TOKENIZER_FILE, trust_remote_code=trust_remote_code)
    has_tokenizer = (place / TOKENIZER_FILE).is_file()
    tokenizer = (
        AutoTokenizer.from_pretrained(str(place), trust_remote_code=trust_remote_code) if has_tokenizer else None
    )
    check_fingerprint(folder, model, dtype=dtype, tokenizer=tokenizer, device=device)
