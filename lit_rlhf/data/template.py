r"""From dialogues to token ids, with exact boundaries between prompt and response.

Every piece of text (a turn with its speaker, a response) is tokenized on its own and the ids are concatenated, so that
the prompt's ids are a prefix of prompt + response by construction, whatever the tokenizer would merge across the seam.
A prompt starts with exactly one BOS where the tokenizer has a BOS of its own (not the EOS), and ends with the
assistant's prefix; a response ends as the chat template ends it (``<end_of_turn>``, ``<|eot_id|>``), else with EOS.

Templates: the tokenizer's chat template where it has one and none is named; else ``hh``
("\n\nHuman: ...\n\nAssistant: ..."), ``moss-en`` and ``moss-zh`` (turns joined by EOS, as in the MOSS-RLHF release).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lit_rlhf.data.records import DialogueRecord, Message, PreferenceRecord, Reason, RowError

_ANCHOR = "\n"
_CONTENT = "abcdefgh"
"""Stands for a response where a chat template is asked what comes after one."""


@dataclass(frozen=True)
class NamedTemplate:
    """A dialogue layout spelt out.

    Attributes:
        user: What comes before a user's text.
        assistant: What comes before a response.
        response_start: White space between that and the response; it belongs to the response's first token.
        separator: "eos" when turns are joined by the EOS token.
    """

    user: str
    assistant: str
    response_start: str
    separator: str = ""


TEMPLATES = {
    "hh": NamedTemplate("\n\nHuman: ", "\n\nAssistant:", " "),
    "moss-en": NamedTemplate("Human: ", "Assistant:", " ", separator="eos"),
    "moss-zh": NamedTemplate("<|Human|>", "<|MOSS|>", "", separator="eos"),
}


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt's ids, and how many old turns had to go for it to fit."""

    ids: list[int]
    dropped_turns: int = 0


@dataclass(frozen=True)
class EncodedPair:
    """Ids of the shared prompt and of both responses with EOS."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    dropped_turns: int = 0


@dataclass(frozen=True)
class EncodedDialogue:
    """Ids of a whole dialogue with EOS after every response; ``learned`` marks the responses' tokens."""

    ids: list[int]
    learned: list[bool]
    dropped_turns: int = 0


def check_template(tokenizer: Any, template: str | None) -> None:
    """Make sure the template can be used, before anything is encoded.

    Raises:
        ValueError: Unknown name, or none named and the tokenizer has no chat template, or no EOS.
    """
    names = ", ".join(TEMPLATES)
    if template is not None and template not in TEMPLATES:
        raise ValueError(f"`template` ({template!r}) must be one of {names}, or None for the tokenizer's own.")
    if template is None and not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"The tokenizer has no chat template: name one with `template=` ({names}).")
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no EOS token, which every response must end with.")


def chat_template(tokenizer: Any, template: str | None) -> str | None:
    """The chat template that renders dialogues as they were encoded in training, BOS included.

    Args:
        tokenizer: A transformers tokenizer.
        template: What the data was encoded with: a name of ``TEMPLATES``, or None for the tokenizer's own.

    Returns:
        Jinja text for ``tokenizer.chat_template``; None where there is neither a name nor a template.
    """
    bos = "{{ bos_token }}" if _bos(tokenizer) else ""
    if template is not None:
        return bos + _as_jinja(TEMPLATES[template])
    own = getattr(tokenizer, "chat_template", None)
    if not bos or not isinstance(own, str):
        return own if isinstance(own, str) else None
    try:
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except Exception:  # jinja raises its own types; an export after hours of training must not end for that
        return own
    return own if rendered.startswith(tokenizer.bos_token) else bos + own


def _as_jinja(layout: NamedTemplate) -> str:
    texts = (layout.user, layout.assistant, layout.response_start)
    user, assistant, start = (json.dumps(text, ensure_ascii=False) for text in texts)  # a string of jinja as well
    after = "{{ eos_token }}" if layout.separator else ""
    return (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}"
        f"{{{{ {assistant} + {start} + m['content'] + eos_token }}}}"
        f"{{% else %}}{{{{ {user} + m['content'] }}}}{after}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {assistant} }}}}{{% endif %}}"
    )


def encode_prompt(
    tokenizer: Any, messages: Sequence[Message], *, template: str | None = None, max_length: int | None = None
) -> list[int]:
    """Token ids of a prompt, up to and including the assistant's prefix; see :func:`fit_prompt`."""
    return fit_prompt(tokenizer, messages, template=template, max_length=max_length).ids


def fit_prompt(
    tokenizer: Any, messages: Sequence[Message], *, template: str | None = None, max_length: int | None = None
) -> EncodedPrompt:
    """Token ids of a prompt, its oldest turns dropped until it fits.

    System turns stay; after a drop the prompt still starts with the user.

    Args:
        tokenizer: A transformers tokenizer.
        messages: Turns, the last one the user's.
        template: A name of ``TEMPLATES``; None for the tokenizer's chat template.
        max_length: Most tokens allowed; None for no limit.

    Raises:
        RowError: The last turn alone is too long, or the chat template refuses the turns.
        ValueError: See :func:`check_template`.
    """
    check_template(tokenizer, template)
    kept, dropped = list(messages), 0
    while True:
        ids = _prompt_ids(tokenizer, kept, template)
        if max_length is None or len(ids) <= max_length:
            return EncodedPrompt(ids, dropped)
        shorter = drop_oldest(kept)
        if not shorter:
            raise RowError(Reason.TOO_LONG, f"the last turn alone is {len(ids)} tokens, {max_length} are allowed")
        dropped += len(kept) - len(shorter)
        kept = shorter


def drop_oldest(messages: Sequence[Message]) -> list[Message]:
    """The turns without the oldest user turn and its response; empty when no earlier turn is left to drop."""
    system = [m for m in messages if m.role == "system"]
    rest = [m for m in messages if m.role != "system"][2:]
    return system + rest if rest else []


def encode_response(tokenizer: Any, text: str, *, template: str | None = None) -> list[int]:
    """Token ids of a response with its end (:func:`response_end`); special tokens in the text are plain text."""
    start = TEMPLATES[template].response_start if template is not None else ""
    return [*encode_piece(tokenizer, start + text), response_end(tokenizer, template=template)]


def response_end(tokenizer: Any, *, template: str | None = None) -> int:
    """Id of the token that a response ends with.

    With a chat template the first special token that it puts after a response: models with several EOS tokens (Gemma,
    Llama 3) end a turn with another one than a text. EOS with a named template, or where the template puts none.

    Args:
        tokenizer: A transformers tokenizer with an EOS.
        template: A name of ``TEMPLATES``; None for the tokenizer's chat template, if it has one.
    """
    if template is not None or not getattr(tokenizer, "chat_template", None):
        return int(tokenizer.eos_token_id)
    return _cached_response_end(tokenizer, str(tokenizer.chat_template))


def encode_pair(
    tokenizer: Any, record: PreferenceRecord, *, template: str | None = None, max_length: int | None = None
) -> EncodedPair:
    """Token ids of a pair; old turns of the prompt are dropped until the longer row fits.

    Raises:
        RowError: A response leaves no room for the last turn, or both responses have the same ids.
        ValueError: See :func:`check_template`.
    """
    chosen = encode_response(tokenizer, record.chosen, template=template)
    rejected = encode_response(tokenizer, record.rejected, template=template)
    if chosen == rejected:  # e.g. differing only in characters that the vocabulary does not have
        raise RowError(Reason.EQUAL_RESPONSES, "the same token ids")
    room = None if max_length is None else max(max_length - max(len(chosen), len(rejected)), 0)
    prompt = fit_prompt(tokenizer, record.prompt, template=template, max_length=room)
    return EncodedPair(prompt.ids, chosen, rejected, prompt.dropped_turns)


def encode_dialogue(
    tokenizer: Any, record: DialogueRecord, *, template: str | None = None, max_length: int | None = None
) -> EncodedDialogue:
    """Token ids of a dialogue for imitation, its oldest exchanges dropped until it fits.

    With a named template every response is learned. A chat template is free to render old turns differently, so with
    one only the last response is learned and the turns before it are the prompt.

    Raises:
        RowError: The last exchange alone is too long (a response is never cut: it would lose its EOS).
        ValueError: See :func:`check_template`.
    """
    check_template(tokenizer, template)
    kept, dropped = list(record.messages), 0
    while True:
        ids, learned = _dialogue_ids(tokenizer, kept, template)
        if max_length is None or len(ids) <= max_length:
            return EncodedDialogue(ids, learned, dropped)
        shorter = drop_oldest(kept)
        if not shorter:
            raise RowError(Reason.TOO_LONG, f"the last exchange alone is {len(ids)} tokens, {max_length} are allowed")
        dropped += len(kept) - len(shorter)
        kept = shorter


def encode_text(tokenizer: Any, text: str, *, max_length: int, separator: str | None = None) -> list[list[int]]:
    """Token ids of plain text in pieces of at most ``max_length``.

    Args:
        tokenizer: With an EOS token.
        text: Special tokens that are written in it are text.
        max_length: Most tokens of a piece.
        separator: What stands in front of each piece, special tokens counting as such, and nothing behind; "" for no
            tokens at all. None: BOS in front of each piece, EOS behind the last. A chat model's BOS and EOS mean turns.

    Raises:
        ValueError: ``max_length`` leaves no room behind the separator.
    """
    if separator is None:
        start, end = _bos(tokenizer), [tokenizer.eos_token_id]
    else:
        start, end = (_encode(tokenizer, separator, plain=False) if separator else []), []
    ids = [*_encode(tokenizer, text, plain=True), *end]
    size = max_length - len(start)
    if size < 1:
        raise ValueError(f"`separator` ({separator!r}) must be shorter than `max_length` ({max_length} tokens).")
    return [start + ids[i : i + size] for i in range(0, len(ids), size)]


def encode_rendered(tokenizer: Any, text: str) -> list[int]:
    """Ids of a prompt that is already in its layout: special tokens written in it count, and one BOS is in front."""
    ids, bos = _encode(tokenizer, text, plain=False), _bos(tokenizer)
    while bos and ids[:1] == bos:
        ids = ids[1:]
    return bos + ids


def encode_piece(tokenizer: Any, text: str) -> list[int]:
    """Ids of ``text`` as it reads in the middle of a row.

    Some tokenizers (Llama 2's) put a space before whatever they are given; behind an anchor they do not. Where the
    anchor would merge with the text the plain ids are right already.
    """
    anchor = list(_anchor_ids(tokenizer))
    ids = _encode(tokenizer, _ANCHOR + text, plain=True)
    if ids[: len(anchor)] == anchor and len(ids) > len(anchor):
        return ids[len(anchor) :]
    return _encode(tokenizer, text, plain=True)


def _dialogue_ids(tokenizer: Any, messages: Sequence[Message], template: str | None) -> tuple[list[int], list[bool]]:
    if template is None:
        prompt = _prompt_ids(tokenizer, messages[:-1], None)
        response = encode_response(tokenizer, messages[-1].content)
        return prompt + response, [False] * len(prompt) + [True] * len(response)
    ids = _bos(tokenizer)
    learned = [False] * len(ids)
    for piece, is_response in _named_pieces(tokenizer, messages, TEMPLATES[template]):
        ids += piece
        learned += [is_response] * len(piece)
    return ids, learned


def _prompt_ids(tokenizer: Any, messages: Sequence[Message], template: str | None) -> list[int]:
    if template is None:
        return _chat_ids(tokenizer, messages)
    layout = TEMPLATES[template]
    pieces = [ids for ids, _ in _named_pieces(tokenizer, messages, layout)]
    return _bos(tokenizer) + [i for ids in pieces for i in ids] + _prefix_ids(tokenizer, layout.assistant)


def _named_pieces(tokenizer: Any, messages: Sequence[Message], layout: NamedTemplate) -> list[tuple[list[int], bool]]:
    """Ids of every turn, and whether they are a response. Responses inside the context look like generated ones."""
    eos = [tokenizer.eos_token_id]
    pieces: list[tuple[list[int], bool]] = []
    for message in messages:
        if message.role == "assistant":
            pieces.append((_prefix_ids(tokenizer, layout.assistant), False))
            pieces.append((encode_piece(tokenizer, layout.response_start + message.content) + eos, True))
        else:
            start = _prefix_ids(tokenizer, layout.user) if not layout.user.endswith(" ") else []
            text = message.content if start else layout.user + message.content
            pieces.append((start + encode_piece(tokenizer, text) + (eos if layout.separator else []), False))
    return pieces


@lru_cache(maxsize=8)
def _cached_response_end(tokenizer: Any, chat_template: str) -> int:
    turns = [{"role": "user", "content": _CONTENT}, {"role": "assistant", "content": _CONTENT}]
    try:
        text = tokenizer.apply_chat_template(turns, chat_template=chat_template, tokenize=False)
    except Exception:  # jinja raises its own types; a template that refuses a plain exchange refuses the data as well
        return int(tokenizer.eos_token_id)
    _, _, after = text.rpartition(_CONTENT)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = [i for i in _encode(tokenizer, after, plain=False) if i in special - {tokenizer.bos_token_id}]
    return int(found[0]) if found else int(tokenizer.eos_token_id)


@lru_cache(maxsize=8)
def _anchor_ids(tokenizer: Any) -> tuple[int, ...]:
    return tuple(_encode(tokenizer, _ANCHOR, plain=True))


def _prefix_ids(tokenizer: Any, prefix: str) -> list[int]:
    """Ids of a speaker's prefix, which may be a special token of the tokenizer (moss-zh)."""
    return list(_cached_prefix_ids(tokenizer, prefix))


@lru_cache(maxsize=32)
def _cached_prefix_ids(tokenizer: Any, prefix: str) -> tuple[int, ...]:
    if prefix in tokenizer.get_added_vocab():
        return (tokenizer.convert_tokens_to_ids(prefix),)
    return tuple(encode_piece(tokenizer, prefix))


def _chat_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja raises its own types, e.g. for a system turn the template does not know
        raise RowError(Reason.WRONG_TYPES, f"the chat template refuses the turns: {error}") from error
    return encode_rendered(tokenizer, text)


def _bos(tokenizer: Any) -> list[int]:
    bos = tokenizer.bos_token_id
    return [] if bos is None or bos == tokenizer.eos_token_id else [bos]


def _encode(tokenizer: Any, text: str, *, plain: bool) -> list[int]:
    """Ids without any added special token; with ``plain`` special tokens in the text are split like words."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"])
