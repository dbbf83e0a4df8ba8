"""Tokenizers and models from a local folder or a hub name, with every silent surprise turned into an error.

transformers fills missing weights with random numbers and prints a note; here a missing weight is a ``ValueError``.
Remote code is off unless asked for, and weights are tensors or they are refused (see ``checkpoint``).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_rlhf.distributed import rank
from lit_rlhf.models.causal import projector
from lit_rlhf.models.checkpoint import check_weights_are_plain, read_tensor, resolve_folder, tensor_keys
from lit_rlhf.models.cpu.kernels import SDPA_NAMES, tune_for_cpu
from lit_rlhf.models.fingerprint import check_fingerprint
from lit_rlhf.models.scalar import HEAD_KEY, ScalarHead, ScalarModel, sequence_classifier

MOSS_HEAD_KEY = "reward_head.weight"
_HEAD_KEYS = (HEAD_KEY, MOSS_HEAD_KEY)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def as_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A weight dtype by its name in a config.

    Raises:
        ValueError: Not one of float32, bfloat16, float16.
    """
    found = _DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise ValueError(f"`dtype` must be one of {', '.join(_DTYPES)}, not '{dtype}'.")
    return found


def load_tokenizer(
    path: str | Path, *, pad_token: str | None = None, needs_pad: bool = True, trust_remote_code: bool = False
) -> Any:
    """A tokenizer that can tell padding from the end of a response.

    Args:
        path: Local folder or hub name.
        pad_token: A token of its vocabulary to pad with, for tokenizers that come without one or with pad = EOS.
        needs_pad: False for a model that only scores whole rows, where padding never reaches the result.
        trust_remote_code: Run Python files that come with the tokenizer.

    Returns:
        ``PreTrainedTokenizerBase``, with distinct ``pad_token_id`` and ``eos_token_id`` where ``needs_pad``.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: No EOS, no pad token, pad = EOS, or ``pad_token`` is not in the vocabulary.
    """
    from transformers import AutoTokenizer

    folder = resolve_folder(path, trust_remote_code=trust_remote_code, weights=False)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    if pad_token is not None:
        if pad_token not in tokenizer.get_vocab():
            raise ValueError(
                f"`pad_token` ('{pad_token}') is not in the vocabulary of '{path}'. {_pad_advice(tokenizer)}"
            )
        tokenizer.pad_token = pad_token
    if tokenizer.eos_token_id is None:
        raise ValueError(f"The tokenizer of '{path}' has no EOS token: set `eos_token` in its tokenizer_config.json.")
    if needs_pad:
        _check_pad(path, tokenizer)
    return tokenizer


def _check_pad(path: str | Path, tokenizer: Any) -> None:
    if tokenizer.pad_token_id is None:
        raise ValueError(f"The tokenizer of '{path}' has no pad token. {_pad_advice(tokenizer)}")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"The tokenizer of '{path}' pads with its EOS token ('{tokenizer.eos_token}'), so the end of a response "
            f"cannot be told from padding. {_pad_advice(tokenizer)}"
        )


def _pad_advice(tokenizer: Any) -> str:
    special = tokenizer.added_tokens_decoder.items()
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    spare = sorted({str(token) for _, token in special} - taken)[:5]
    listed = f" (special tokens it has: {', '.join(spare)})" if spare else ""
    return f"Name one that text never contains with `pad_token`{listed}."


def same_vocabulary(tokenizer: Any, other: Any) -> bool:
    """Whether both map the same ids to the same tokens and end a response with the same one."""
    return bool(tokenizer.eos_token_id == other.eos_token_id and tokenizer.get_vocab() == other.get_vocab())


def check_vocabulary(policy_tokenizer: Any, other_tokenizer: Any) -> None:
    """Require that token ids mean the same to both models (policy and reference, policy and critic).

    Raises:
        ValueError: They do not; names the first token that differs.
    """
    if same_vocabulary(policy_tokenizer, other_tokenizer):
        return
    if policy_tokenizer.eos_token_id != other_tokenizer.eos_token_id:
        what = f"EOS is {policy_tokenizer.eos_token_id} for one and {other_tokenizer.eos_token_id} for the other"
    else:
        ours, theirs = policy_tokenizer.get_vocab(), other_tokenizer.get_vocab()
        token = min(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        what = f"token '{token}' is {ours.get(token, 'absent')} for one and {theirs.get(token, 'absent')} for the other"
    raise ValueError(f"Policy and other model must share one vocabulary: {what}.")


def check_context(config: Any, total_length: int) -> None:
    """Require that prompt + response fit the positions a model was built for.

    Args:
        config: A Hugging Face configuration.
        total_length: Prompt and response tokens together.

    Raises:
        ValueError: They do not fit.
    """
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and total_length > limit:
        raise ValueError(
            f"Prompt and response together ({total_length} tokens) must fit the model's context ({limit} tokens)."
        )


def check_embeddings(config: Any, tokenizer: Any) -> None:
    """Require an embedding row for every token id.

    Raises:
        ValueError: The tokenizer has more tokens than the model has rows.
    """
    rows = config.get_text_config().vocab_size
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ValueError(f"The tokenizer's largest id ({largest}) must be below the model's vocabulary size ({rows}).")


def load_config(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The Hugging Face configuration of a model, without its weights.

    Raises:
        FileNotFoundError: No such folder or hub name.
    """
    from transformers import AutoConfig

    folder = resolve_folder(path, trust_remote_code=trust_remote_code, weights=False)
    return AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)


def check_tokenizers(tokenizer: Any, path: str | Path, *, trust_remote_code: bool = False) -> None:
    """:func:`check_vocabulary` against the model at ``path``; one that comes without a tokenizer passes.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: The same ids mean different tokens.
    """
    folder = resolve_folder(path, trust_remote_code=trust_remote_code, weights=False)
    if not (folder / "tokenizer_config.json").is_file():
        return
    other = load_tokenizer(folder, needs_pad=False, trust_remote_code=trust_remote_code)
    try:
        check_vocabulary(tokenizer, other)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error


def load_causal_lm(
    path: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    attn_implementation: str | None = None,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
) -> Any:
    """A causal language model with every weight from the checkpoint and every dropout off.

    Dropout is off because the update must see the very distribution that sampled: with it the first importance ratios
    of an iteration would not be 1.

    Args:
        path: Local folder or hub name.
        dtype: Of the weights.
        attn_implementation: As in transformers; None takes its default for the architecture.
        gradient_checkpointing: Recompute each layer's activations in backward (active in train mode only).
        trust_remote_code: Run Python files that come with the model.

    Returns:
        ``PreTrainedModel`` on the CPU, in eval mode as transformers leaves it.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: Weights are missing, damaged, or a pickle with code.
    """
    from transformers import AutoModelForCausalLM

    folder = resolve_folder(path, trust_remote_code=trust_remote_code)
    return _load(
        AutoModelForCausalLM, folder, dtype=dtype, attn_implementation=attn_implementation,
        gradient_checkpointing=gradient_checkpointing, trust_remote_code=trust_remote_code,
    )  # fmt: skip


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
    model = _load(
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
    if wanted in ("eager", *SDPA_NAMES):
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
    found = [key for key in _HEAD_KEYS if key in keys]
    if not found:
        near = [key for key in keys if "head" in key or "score" in key or "classif" in key][:5]
        raise ValueError(
            f"'{folder}' has no scalar head ({' or '.join(_HEAD_KEYS)}){_has(near)}. It is not a reward model; for a "
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


def _load(
    auto_class: Any, folder: Path, *, dtype: str | torch.dtype, attn_implementation: str | None,
    gradient_checkpointing: bool, trust_remote_code: bool,
) -> Any:  # fmt: skip
    """``from_pretrained`` that checks what it loaded."""
    from transformers import AutoConfig

    use_safetensors = check_weights_are_plain(folder)
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    with quiet():
        model, info = auto_class.from_pretrained(
            str(folder), config=without_dropout(config), dtype=as_dtype(dtype), use_safetensors=use_safetensors,
            attn_implementation=attn_implementation, trust_remote_code=trust_remote_code, output_loading_info=True,
            weights_only=True,
        )  # fmt: skip
    check_loaded(f"'{folder}'", model, info)
    if gradient_checkpointing:
        # The second name is the first one's in transformers before 5.20.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    tune_for_cpu(model)
    return model


def check_loaded(source: str, model: nn.Module, info: dict[str, Any], *, strict: bool = False) -> None:
    """Turn transformers' loading report into an error for what is missing, and a warning for what is left over.

    Args:
        source: Where the weights come from, for the message.
        model: What they were loaded into.
        info: The report of ``from_pretrained(..., output_loading_info=True)``.
        strict: What is left over is an error too.

    Raises:
        ValueError: A weight is missing, or has another shape.
    """
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"])
    if missing or info["error_msgs"]:
        shown = _listed(missing) if missing else str(info["error_msgs"])
        raise ValueError(f"{source} does not hold these weights of {type(model).__name__}: {shown}.")
    unused = sorted(key for key in info["unexpected_keys"] if key not in (*_HEAD_KEYS, "lm_head.weight"))
    if unused and strict:
        raise ValueError(f"{source} holds weights that {type(model).__name__} does not have: {_listed(unused)}.")
    if unused:
        warnings.warn(f"{source} has {len(unused)} weights that are not used: {_listed(unused)}.", stacklevel=4)


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")


def without_dropout(config: Any) -> Any:
    """A copy of a Hugging Face configuration with every dropout probability 0, nested configurations included."""
    config = copy.deepcopy(config)
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in vars(part).copy().items():
            if "drop" in name and type(value) in (int, float):
                setattr(part, name, 0.0)
    return config


@contextmanager
def quiet() -> Iterator[None]:
    """No load report from transformers: what it would say is checked here, and its 'unexpected' heads are expected."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
