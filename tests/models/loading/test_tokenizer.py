"""Tokenizers: padding and the end of a response are never the same token."""

from __future__ import annotations

import pytest

from lit_rlhf.models.loading.tokenizer import check_vocabulary, load_tokenizer
from tests.models.tiny import CHARACTERS, make_tokenizer


class TestTokenizer:
    def test_loads(self, tmp_path, tokenizer):
        tokenizer.save_pretrained(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert loaded("ab")["input_ids"] == tokenizer("ab")["input_ids"]

    def test_no_pad_is_refused_and_the_fix_is_named(self, tmp_path):
        make_tokenizer(pad=None).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"has no pad token.*`pad_token`.*<unk>"):
            load_tokenizer(tmp_path)
        assert load_tokenizer(tmp_path, pad_token="<unk>").pad_token_id == 2

    def test_pad_equal_to_eos_is_refused(self, tmp_path):
        make_tokenizer(pad="<eos>").save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"pads with its EOS token.*`pad_token`"):
            load_tokenizer(tmp_path)

    def test_pad_token_must_exist(self, tmp_path, tokenizer):
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"`pad_token` \('<nope>'\) is not in the vocabulary"):
            load_tokenizer(tmp_path, pad_token="<nope>")

    def test_no_eos_is_refused(self, tmp_path, tokenizer):
        tokenizer.eos_token = None
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="has no EOS token"):
            load_tokenizer(tmp_path)

    def test_vocabularies(self, tokenizer):
        check_vocabulary(tokenizer, make_tokenizer())
        with pytest.raises(ValueError, match=r"token 'a' is 4 for one and 5 for the other"):
            check_vocabulary(tokenizer, make_tokenizer("ba" + CHARACTERS[2:]))
