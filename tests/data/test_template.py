"""Ids of prompts and responses: one BOS, EOS on responses, exact boundaries, oldest turns dropped first."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_rlhf.data.records import DialogueRecord, Message, PreferenceRecord, Reason, RowError
from lit_rlhf.data.template import (
    chat_template,
    check_template,
    encode_dialogue,
    encode_pair,
    encode_prompt,
    encode_response,
    encode_text,
    fit_prompt,
    response_end,
)

from .conftest import CHAT_TEMPLATE, make_tokenizer

DIALOGUE = (Message("user", "hi"), Message("assistant", "yo"), Message("user", "why?"))
EOS, BOS, PAD = 2, 1, 0
RENDERED = {
    "hh": "<s>\n\nHuman: hi\n\nAssistant: yo</s>\n\nHuman: why?\n\nAssistant:| so</s>",
    "moss-en": "<s>Human: hi</s>Assistant: yo</s>Human: why?</s>Assistant:| so</s>",
    "moss-zh": "<s><|Human|>hi</s><|MOSS|>yo</s><|Human|>why?</s><|MOSS|>|so</s>",
}


@pytest.mark.parametrize("template", RENDERED)
def test_named_templates_word_for_word(tokenizer, template):
    prompt, response = RENDERED[template].split("|" if template != "moss-zh" else ">|s")
    response = response if template != "moss-zh" else "s" + response
    prompt = prompt if template != "moss-zh" else prompt + ">"
    assert tokenizer.decode(encode_prompt(tokenizer, DIALOGUE, template=template)) == prompt
    assert tokenizer.decode(encode_response(tokenizer, "so", template=template)) == response


def test_moss_zh_speakers_are_the_special_tokens(tokenizer):
    ids = encode_prompt(tokenizer, DIALOGUE, template="moss-zh")
    assert ids.count(tokenizer.convert_tokens_to_ids("<|MOSS|>")) == 2


@pytest.mark.parametrize("template", [*RENDERED, None])
def test_exactly_one_bos_and_eos_on_every_response(chat_tokenizer, template):
    record = DialogueRecord(messages=(*DIALOGUE, Message("assistant", "so")))
    encoded = encode_dialogue(chat_tokenizer, record, template=template)
    assert encoded.ids.count(BOS) == 1
    assert encoded.ids[0] == BOS
    assert encoded.ids[-1] == EOS
    learned = [i for i, on in zip(encoded.ids, encoded.learned, strict=True) if on]
    told = chat_tokenizer.decode(learned).replace(" ", "")
    assert told == ("so</s>" if template is None else "yo</s>so</s>")


@pytest.mark.parametrize("template", [*RENDERED, None])
def test_the_exported_chat_template_gives_the_ids_of_training(template):
    """Also where the tokenizer's own template leaves the BOS out, which training puts in front."""
    tokenizer = make_tokenizer(CHAT_TEMPLATE.replace("{{ bos_token }}", ""))
    wanted = encode_prompt(tokenizer, DIALOGUE, template=template)
    assert wanted[0] == BOS
    whole = encode_dialogue(tokenizer, DialogueRecord(messages=DIALOGUE[:2]), template=template).ids
    tokenizer.chat_template = chat_template(tokenizer, template)
    turns = [{"role": message.role, "content": message.content} for message in DIALOGUE]
    assert tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"] == wanted
    if template is not None:  # every response with its EOS
        assert tokenizer.apply_chat_template(turns[:2])["input_ids"] == whole
    assert chat_template(tokenizer, None) == tokenizer.chat_template, "a BOS too many"


def test_no_template_is_made_up():
    assert chat_template(make_tokenizer(None), None) is None


def test_a_bos_from_template_and_tokenizer_is_not_doubled():
    doubled = make_tokenizer("{{ bos_token }}" + CHAT_TEMPLATE)
    assert encode_prompt(doubled, DIALOGUE).count(BOS) == 1
    without = make_tokenizer(CHAT_TEMPLATE.replace("{{ bos_token }}", ""))
    assert encode_prompt(without, DIALOGUE).count(BOS) == 1
    none = make_tokenizer(CHAT_TEMPLATE.replace("{{ bos_token }}", ""), bos_token=None)
    assert encode_prompt(none, DIALOGUE).count(BOS) == 0


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20), st.sampled_from([*RENDERED, None]))
def test_prompt_ids_are_a_prefix_whatever_the_text(prompt, response, template):
    tokenizer = make_tokenizer(CHAT_TEMPLATE, merges=[(":", "Ġ"), ("Ċ", "Ċ"), ("s", "o"), (">", "s")])
    messages = (Message("user", prompt), Message("assistant", response))
    whole = encode_dialogue(tokenizer, DialogueRecord(messages=messages), template=template)
    head = encode_prompt(tokenizer, messages[:1], template=template)
    assert whole.ids == head + encode_response(tokenizer, response, template=template)
    assert whole.learned == [False] * len(head) + [True] * (len(whole.ids) - len(head))


def test_merges_never_cross_the_boundary():
    merging = make_tokenizer(merges=[(":", "Ġ")])  # "Assistant: so" as one string would eat the prompt's last token
    prompt = encode_prompt(merging, DIALOGUE, template="hh")
    assert merging.decode(prompt).endswith("Assistant:")
    assert merging(":" + " so")["input_ids"][0] != prompt[-1]


def test_special_tokens_written_in_the_text_stay_text(tokenizer):
    response = encode_response(tokenizer, "a</s>b<pad>", template="hh")
    assert response.count(EOS) == 1
    assert PAD not in response
    prompt = encode_prompt(tokenizer, [Message("user", "<s></s>")], template="hh")
    assert (prompt.count(BOS), prompt.count(EOS)) == (1, 0)


def test_oldest_exchanges_go_first_and_are_counted(tokenizer):
    system = Message("system", "S")
    long = [system, *DIALOGUE[:2], *DIALOGUE]
    whole = fit_prompt(tokenizer, long, template="hh")
    cut = fit_prompt(tokenizer, long, template="hh", max_length=len(whole.ids) - 1)
    assert (whole.dropped_turns, cut.dropped_turns) == (0, 2)
    assert cut.ids == encode_prompt(tokenizer, [system, *DIALOGUE], template="hh")
    with pytest.raises(RowError, match=r"too long: the last turn alone is \d+ tokens, 5 are allowed"):
        fit_prompt(tokenizer, long, template="hh", max_length=5)


def test_pair_makes_room_for_the_longer_response(tokenizer):
    record = PreferenceRecord(prompt=DIALOGUE, chosen="a" * 5, rejected="b" * 50)
    whole = encode_pair(tokenizer, record, template="hh")
    longest = len(whole.prompt) + len(whole.rejected)
    assert encode_pair(tokenizer, record, template="hh", max_length=longest).dropped_turns == 0
    assert encode_pair(tokenizer, record, template="hh", max_length=longest - 1).dropped_turns == 2


def test_responses_equal_after_tokenising_are_refused():
    unknown = make_tokenizer()
    unknown.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Lowercase()
    with pytest.raises(RowError) as error:
        encode_pair(unknown, PreferenceRecord(prompt=DIALOGUE, chosen="A", rejected="a"), template="hh")
    assert error.value.reason is Reason.EQUAL_RESPONSES


def test_text_is_cut_in_pieces_with_nothing_lost(tokenizer):
    pieces = encode_text(tokenizer, "abcdefgh", max_length=4)
    assert [len(p) for p in pieces] == [4, 4, 4]
    assert [p[0] for p in pieces] == [BOS] * 3
    assert tokenizer.decode([i for p in pieces for i in p[1:]]) == "abcdefgh</s>"


def test_template_errors_name_the_choices(tokenizer):
    with pytest.raises(ValueError, match=r"no chat template: name one with `template=` \(hh, moss-en, moss-zh\)"):
        check_template(tokenizer, None)
    with pytest.raises(ValueError, match=r"`template` \('chatml'\) must be one of hh"):
        check_template(tokenizer, "chatml")


def test_a_chat_template_that_refuses_the_turns_refuses_the_row():
    picky = make_tokenizer("{{ raise_exception('no system turns') }}")
    with pytest.raises(RowError, match="wrong types: the chat template refuses the turns: no system turns"):
        encode_prompt(picky, DIALOGUE)


def test_a_tokenizer_that_prepends_a_space_does_not_double_it():
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "\u2581", "\n", *"Human:Asitoyh?w", "\u2581\u2581"]
    vocab = {w: i for i, w in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("\u2581", "\u2581")]))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    llama = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token=None
    )
    assert llama.convert_ids_to_tokens(llama("so", add_special_tokens=False)["input_ids"]) == ["\u2581", "s", "o"]
    assert llama.convert_ids_to_tokens(encode_response(llama, "so", template="hh")) == ["\u2581", "s", "o", "</s>"]
    prompt = llama.convert_ids_to_tokens(encode_prompt(llama, DIALOGUE, template="hh"))
    assert "".join(prompt) == "<s>\n\nHuman:\u2581hi\n\nAssistant:\u2581yo</s>\n\nHuman:\u2581why?\n\nAssistant:"


CHATML = (
    "{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + m['content'] + '<turn_end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)


class TestTheEndOfAResponse:
    """A chat template may end a turn with another token than EOS, as Gemma's and Llama 3's do."""

    @pytest.fixture
    def chatml(self):
        tokenizer = make_tokenizer(CHATML)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<turn_end>"]})
        return tokenizer

    def test_is_the_chat_templates(self, chatml):
        end = chatml.convert_tokens_to_ids("<turn_end>")
        assert response_end(chatml) == end != EOS
        assert encode_response(chatml, "so")[-1] == end
        pair = encode_pair(chatml, PreferenceRecord(prompt=DIALOGUE, chosen="so", rejected="no"))
        assert (pair.chosen[-1], pair.rejected[-1]) == (end, end)
        dialogue = encode_dialogue(chatml, DialogueRecord(messages=(*DIALOGUE, Message("assistant", "so"))))
        assert dialogue.ids[-1] == end
        assert dialogue.learned[-1]
        # What is learned is what the template itself puts there.
        turns = [{"role": m.role, "content": m.content} for m in (*DIALOGUE, Message("assistant", "so"))]
        rendered = chatml(chatml.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]
        assert [BOS, *rendered][: len(dialogue.ids)] == dialogue.ids

    def test_is_eos_with_a_named_template_and_where_the_template_says_nothing(self, chatml):
        assert response_end(chatml, template="hh") == EOS
        assert encode_response(chatml, "so", template="hh")[-1] == EOS
        assert response_end(make_tokenizer(None)) == EOS
        assert response_end(make_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")) == EOS
        assert response_end(make_tokenizer("{{ raise_exception('no') }}")) == EOS

    def test_follows_a_template_that_is_changed(self, chatml):
        assert response_end(chatml) != EOS
        chatml.chat_template = CHAT_TEMPLATE
        assert response_end(chatml) == EOS


def test_a_template_that_refuses_a_lone_question_is_exported_as_it_is():
    own = "{% if messages | length < 2 %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    assert chat_template(make_tokenizer(own), None) == own


def test_plain_text_may_stand_behind_a_separator_of_its_own_and_ends_as_it_ends(tokenizer):
    plain = encode_text(tokenizer, "abcdefgh", max_length=99)[0]
    text = plain[1:-1] if plain[0] == tokenizer.bos_token_id else plain[:-1]
    assert encode_text(tokenizer, "abcdefgh", max_length=99, separator="") == [text]
    end = tokenizer.eos_token
    assert encode_text(tokenizer, "abcdefgh", max_length=99, separator=end) == [[tokenizer.eos_token_id, *text]]
    pieces = encode_text(tokenizer, "abcdefgh", max_length=3, separator=end)
    assert [piece[0] for piece in pieces] == [tokenizer.eos_token_id] * len(pieces)
    assert [token for piece in pieces for token in piece[1:]] == text
    with pytest.raises(ValueError, match=r"`separator` \('.*'\) must be shorter than `max_length` \(1 tokens\)"):
        encode_text(tokenizer, "abcdefgh", max_length=1, separator=end)
