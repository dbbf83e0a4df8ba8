from __future__ import annotations

import json

import pytest
from jinja2 import UndefinedError

from lit_rlhf.reports import page
from lit_rlhf.reports.figures import literal
from lit_rlhf.reports.page import cut, embedded, number, showable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\r\nb\tc", "a\nb\tc"),
        ("\x00\u202e\ud800\x1b\u061c", "\ufffd" * 5),
        ("é北京🙂", "é北京🙂"),
        ("<b>&\"'", "<b>&\"'"),  # escaped by the template
    ],
)
def test_showable(text, shown):
    assert showable(text) == shown


def test_a_long_text_is_cut_with_the_number_of_characters_cut():
    assert cut("12345678", 5) == "12345 … [3 more characters]"
    assert cut("12345", 5) == "12345"


def test_numbers_have_three_digits_and_a_real_minus():
    assert [number(x) for x in (-0.12345, 2.0, float("nan"))] == ["\N{MINUS SIGN}0.123", "2.000", "n/a"]
    assert [number(x, signed=True) for x in (-1.0, 1.0)] == ["\N{MINUS SIGN}1.000", "+1.000"]


def test_whatever_a_template_prints_is_showable_and_escaped():
    template = page._ENVIRONMENT.from_string("{{ text }}|{{ text | cut(6) }}|<i title='{{ text }}'>")
    shown = "&lt;b&gt;\ufffd&amp;&#39;"
    assert template.render(text="<b>\x00&'") == f"{shown}|{shown}|<i title='{shown}'>"


def test_json_in_a_page_is_what_was_said():
    value = {"a": ["<!--", "</script>", "&", "'", '"', "\u2028\u2029", "é北京🙂", 1, 2.5, None, True, float("nan")]}
    text = embedded(value)
    assert not set(text) & set("<>&'")
    assert text.isascii()
    assert json.loads(text) == {"a": [*value["a"][:-1], None]}


def test_a_value_that_a_template_misses_is_an_error():
    with pytest.raises(UndefinedError, match="'title' is undefined"):
        page.render("run")


def test_labels_of_charts_are_text():
    assert literal("<i>a</i>") == "&lt;i&gt;a&lt;/i&gt;"
    assert literal("b" * 50, 20) == "b" * 19 + "…"
