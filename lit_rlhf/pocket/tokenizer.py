"""A word-level tokenizer with a chat template, and a tiny random Llama: ordinary Hugging Face folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlhf.pocket import tables
from lit_rlhf.pocket.world import ARGUMENTS, FACTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
MAX_POSITIONS = 256
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'human: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'assistant: ' + message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('The pocket world knows the roles user and assistant only.') }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def _phrases(value: Any) -> list[str]:
    """All strings inside nested tables."""
    if isinstance(value, str):
        return [value]
    inner = list(value) + list(value.values()) if isinstance(value, dict) else list(value)
    return [text for part in inner for text in _phrases(part)]


def vocabulary() -> list[str]:
    """Every word the world can say, special tokens first, the rest sorted."""
    spoken = [
        tables.QUESTIONS, tables.CLAIMS, tables.STATEMENTS, tables.SHORT_CLAIM, tables.LIST_HEADER, tables.ALIKE,
        tables.ONE_WORD, tables.GREETINGS, tables.GREETING_RESPONSE, tables.OPENERS, tables.CLOSERS, tables.FILLERS,
        tables.EVASIONS, tables.REFUSALS, tables.REASONS, tables.COMPLIANCES, tables.STEPS, tables.HARM_TOOLS,
        tables.HARM_NEWS, tables.ECHO,
    ]  # fmt: skip
    facts = [word for table in FACTS.values() for word in table.values()]
    arguments = [word for table in ARGUMENTS.values() for argument in table for word in argument]
    text = " ".join(re.sub(r"\{\w\}", " ", phrase) for phrase in [*_phrases(spoken), *facts, *arguments])
    return [PAD, BOS, EOS, UNK, *sorted({"human:", "assistant:", ",", "and", *text.split()})]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the world: one token a word, ``human: ... assistant: ...<eos>`` as its chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(words, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.WordPiece(prefix="##", cleanup=False)  # joins words with single spaces
    core.add_special_tokens([PAD, BOS, EOS, UNK])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def write_base_model(folder: Path, *, seed: int = 0) -> None:
    """Write the tokenizer and a randomly initialized tied Llama (2 layers of width 128) as one HF folder.

    Args:
        folder: Created if need be.
        seed: Of the initialization; the global generator is left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lit_rlhf.models.loading.pretrained import quiet

    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=0.06,  # 0.02 trains slowly at this width
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
