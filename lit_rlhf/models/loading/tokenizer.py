"""Tokenizers that can tell padding from the end of a response, and whether two models share one vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_rlhf.models.loading.origin import with_file

TOKENIZER_FILE = "tokenizer_config.json"


def load_tokenizer(
    path: str | Path, *, pad_token: str | None = None, needs_pad: bool = True, trust_remote_code: bool = False
) -> Any:
    """A tokenizer that can tell padding from the end of a response.

    Args:
        path: Local folder or hub name; an adapter without a tokenizer has its base's.
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

    folder = with_file(path, TOKENIZER_FILE, trust_remote_code=trust_remote_code)
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


def check_tokenizers(tokenizer: Any, path: str | Path, *, trust_remote_code: bool = False) -> None:
    """:func:`check_vocabulary` against the model at ``path``; one that comes without a tokenizer passes.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: The same ids mean different tokens.
    """
    folder = with_file(path, TOKENIZER_FILE, trust_remote_code=trust_remote_code)
    if not (folder / TOKENIZER_FILE).is_file():
        return
    other = load_tokenizer(folder, needs_pad=False, trust_remote_code=trust_remote_code)
    try:
        check_vocabulary(tokenizer, other)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
