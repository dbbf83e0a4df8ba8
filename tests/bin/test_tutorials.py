"""`bin/tutorials`: cells, pages, and that every written page holds the code of its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bin.docs_site.tutorials import FOLDER, cells, code_of, render

SOURCE = """# %% [markdown]
# # A title
# Text.

# %%
x = 1
print(x)

# %% [markdown]
# More.

# %%
y = x
"""


@pytest.fixture(autouse=True)
def _no_open_figures() -> None:
    """Pages hold every figure that is open: those of other tests in this process are none of theirs."""
    pytest.importorskip("matplotlib.pyplot").close("all")


def test_cells_and_page(tmp_path: Path) -> None:
    assert list(cells(SOURCE)) == [
        (True, "# A title\nText."),
        (False, "x = 1\nprint(x)"),
        (True, "More."),
        (False, "y = x"),
    ]
    page = render(SOURCE, "made_up", tmp_path)
    assert page.startswith("# A title\n\nThis page is [made_up.py](made_up.py)")
    assert code_of(page) == ["x = 1\nprint(x)", "y = x"]
    assert '```{ .text .no-copy title="prints" }\n1\n```\n\nMore.' in page


def test_a_cell_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        render("# %% [markdown]\n# # T\n\n# %%\n1 / 0\n", "made_up", tmp_path)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_a_page_holds_the_code_of_its_file(file: Path) -> None:
    code = [body for is_text, body in cells(file.read_text(encoding="utf-8")) if not is_text]
    text = [body for is_text, body in cells(file.read_text(encoding="utf-8")) if is_text]
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert code_of(page) == code
    assert all(body.partition("\n")[2].strip("\n") in page for body in text)
