"""Builders shared by the model and reward tests."""

from __future__ import annotations

from typing import Any

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,!?+*=;'"


def make_tokenizer(characters: str = CHARACTERS, *, bos: bool = False, pad: str | None = "<pad>") -> Any:
    """One token per character, with <pad>, <eos>, <unk> (and <bos> put in front)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>", "<bos>"]
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.decoder = decoders.Fuse()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, eos_token="<eos>", unk_token="<unk>", bos_token="<bos>"
    )


def tiny_config(architecture: str, vocab_size: int, **overrides: Any) -> Any:
    """A two-layer configuration of the named architecture."""
    from transformers import AutoConfig

    common = {"vocab_size": vocab_size, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
    modern = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "head_dim": 8,
    }  # fmt: skip
    gpt2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    special: dict[str, dict[str, Any]] = {
        "gpt2": {**gpt2},
        "gemma2": {**modern, "final_logit_softcapping": 3.0, "sliding_window": 64, "query_pre_attn_scalar": 8},
        "cohere": {**modern, "logit_scale": 0.25},
        "granite": {**modern, "logits_scaling": 4.0},
    }
    return AutoConfig.for_model(architecture, **{**common, **special.get(architecture, modern), **overrides})
