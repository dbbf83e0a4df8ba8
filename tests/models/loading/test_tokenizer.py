"""Tokenizers: something to pad with, an end of a response, one vocabulary."""

from __future__ import annotations

import pytest

from lit_rlhf.models.loading.tokenizer import check_vocabulary, load_tokenizer
from tests.models.tiny import CHARACTERS, make_tokenizer


class TestTokenizer:
    def test_loads(self, tmp_path, tokenizer):
        tokenizer.save_pretrained(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert loaded("ab")["input_ids"] == tokenizer("ab")["input_ids"]

    @pytest.mark.parametrize("pad", [None, "<eos>"])
    def test_pads_with_eos_where_it_has_nothing_else(self, tmp_path, pad):
        make_tokenizer(pad=pad).save_pretrained(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert loaded.pad_token_id == loaded.eos_token_id == 1
        assert load_tokenizer(tmp_path, pad_token="<unk>").pad_token_id == 2

    def test_pad_token_must_exist(self, tmp_path, tokenizer):
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(
            ValueError, match=r"`model\.pad_token` \('<nope>'\) is not in the vocabulary .*special.*<pad>"
        ):
            load_tokenizer(tmp_path, pad_token="<nope>")

    def test_a_word_is_no_pad_token(self, tmp_path, tokenizer):
        """It would be missing from every response that is decoded for a reward."""
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"`model\.pad_token` \('!'\) is a word of the vocabulary"):
            load_tokenizer(tmp_path, pad_token="!")

    def test_no_eos_is_refused(self, tmp_path, tokenizer):
        tokenizer.eos_token = None
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="has no EOS token"):
            load_tokenizer(tmp_path)

    def test_vocabularies(self, tokenizer):
        check_vocabulary(tokenizer, make_tokenizer())
        with pytest.raises(ValueError, match=r"token 'a' is 4 for one and 5 for the other"):
            check_vocabulary(tokenizer, make_tokenizer("ba" + CHARACTERS[2:]))
