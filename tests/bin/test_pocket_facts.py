"""bin/studies/pocket_facts.py: which questions a reward model is asked."""

import importlib.util
from collections import Counter
from pathlib import Path

from lit_rlhf.pocket.gold import gold_score

_PATH = Path(__file__).resolve().parents[2] / "bin" / "studies" / "pocket_facts.py"
_SPEC = importlib.util.spec_from_file_location("pocket_facts", _PATH)
facts = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(facts)


def test_every_question_comes_with_each_flaw_as_often_and_the_right_answer_is_the_better_one():
    cases = list(facts.questions("test"))
    counts = Counter(flaw for _, flaw, _, _ in cases)
    assert set(counts) == {"wrong", "misheard", "restated"}
    assert len(set(counts.values())) == 1
    assert {prompt.family for prompt, *_ in cases}.isdisjoint({"harm", "list"})
    for prompt, _, right, flawed in cases:
        assert gold_score(prompt, right, ended=True) > gold_score(prompt, flawed, ended=True)


def test_the_questions_are_the_same_every_time_and_of_their_split():
    assert list(facts.questions("val")) == list(facts.questions("val"))
    asked = {(prompt.family, prompt.argument) for prompt, *_ in facts.questions("val")}
    assert asked.isdisjoint((prompt.family, prompt.argument) for prompt, *_ in facts.questions("test"))
