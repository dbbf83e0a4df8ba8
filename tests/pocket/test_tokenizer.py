import random

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_rlhf.pocket.responses import demonstrate, write_document
from lit_rlhf.pocket.tokenizer import build_tokenizer, vocabulary, write_base_model
from lit_rlhf.pocket.world import sample_prompt


def test_words_are_unique_and_specials_distinct():
    words = vocabulary()
    assert len(words) == len(set(words))
    tokenizer = build_tokenizer()
    specials = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert specials == [0, 1, 2, 3]


def test_everything_the_world_says_is_in_the_vocabulary_and_round_trips():
    tokenizer = build_tokenizer()
    rng = random.Random(0)
    for split in ("train", "val", "test"):
        for _ in range(500):
            prompt = sample_prompt(rng, split)
            for text in (demonstrate(rng, prompt), write_document(rng), prompt.question):
                ids = tokenizer(text)["input_ids"]
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode(ids) == text


def test_chat_template_marks_turns_and_ends_responses():
    tokenizer = build_tokenizer()
    turns = [
        {"role": "user", "content": "hi !"},
        {"role": "assistant", "content": "hello , how can i help ?"},
        {"role": "user", "content": "where is paris ?"},
    ]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    words = " ".join(tokenizer.convert_ids_to_tokens(ids))
    assert words == "human: hi ! assistant: hello , how can i help ? <eos> human: where is paris ? assistant:"
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "france ."}], return_dict=False)
    assert whole[: len(ids)] == ids
    assert tokenizer.convert_ids_to_tokens(whole[len(ids) :]) == ["france", ".", "<eos>"]


def test_base_model_is_an_ordinary_folder_and_seeded(tmp_path):
    before = torch.random.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_base_model(tmp_path / name, seed=seed)
    assert torch.equal(before, torch.random.get_rng_state())
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in "abc"]
    weights = [model.get_input_embeddings().weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert models[0].get_output_embeddings().weight is weights[0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    assert tokenizer.eos_token_id == models[0].config.eos_token_id
    assert tokenizer("apples are fruits .")["input_ids"] == build_tokenizer()("apples are fruits .")["input_ids"]
