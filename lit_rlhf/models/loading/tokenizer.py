"""Tokenizers that can end a response and fill a row, and whether two models share one vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_rlhf.models.loading.origin import with_file

TOKENIZER_FILE = "tokenizer_config.json"
_FILES = ("tokeni*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "*.spm", "*.bpe")
"""What a tokenizer is saved as: one of them is there."""


def load_tokenizer(path: str | Path, *, pad_token: str | None = None, trust_remote_code: bool = False) -> Any:
    """A tokenizer with an EOS token, and with something to pad with: EOS where it has no pad token of its own.

    Padding is told from the end of a response by masks everywhere, so both may be one token.

    Args:
        path: Local folder or hub name; an adapter without a tokenizer has its base's.
        pad_token: A special token of its vocabulary to pad with, in place of its own.
        trust_remote_code: Run Python files that come with the tokenizer.

    Returns:
        ``PreTrainedTokenizerBase`` with ``pad_token_id`` and ``eos_token_id``.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: No EOS, or ``pad_token`` is not a special token of the vocabulary.
    """
    from transformers import AutoTokenizer

    folder = with_file(path, TOKENIZER_FILE, trust_remote_code=trust_remote_code)
    if not any(path for pattern in _FILES for path in folder.glob(pattern)):
        raise FileNotFoundError(f"'{path}' holds no tokenizer: save it there with `tokenizer.save_pretrained`.")
    tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"The tokenizer of '{path}' has no EOS token: set `eos_token` in its tokenizer_config.json.")
    if pad_token is not None:
        _check_pad_token(path, tokenizer, pad_token)
        tokenizer.pad_token = pad_token
    elif tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_pad_token(path: str | Path, tokenizer: Any, pad_token: str) -> None:
    """It must exist, and not be a word: a pad token is left out wherever ids are decoded for a reward."""
    special = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    if special.get(pad_token):
        return
    rule = "is a word of" if pad_token in tokenizer.get_vocab() else "is not in"
    named = ", ".join(sorted(token for token, is_special in special.items() if is_special)[:5])
    raise ValueError(
        f"`model.pad_token` ('{pad_token}') {rule} the vocabulary of '{path}': name a special token ({named}), "
        "or none: rows are then filled with its own pad token or with EOS."
    )


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
    other = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    try:
        check_vocabulary(tokenizer, other)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
