"""Pages from templates: one HTML file that loads nothing, in which no data executes, hides or breaks anything.

Data is hostile: markup, scripts, control characters, text that reverses its direction, a word of ten thousand letters.
Whatever a template prints is first made showable (:func:`showable`), then escaped; the content security policy allows
no connection, and no script but the page's own, told by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from lit_rlhf.reports.figures import Chart
from lit_rlhf.reports.palette import PAGE

if TYPE_CHECKING:  # `lit-rlhf report` answers without torch
    from lit_rlhf.evaluation.intervals import Interval

PACKAGES = ("lit-rlhf", "torch", "lightning", "transformers", "deepspeed", "plotly")

# Surrogates, controls but for tab and newline, and what changes the direction of text.
_UNSHOWABLE = re.compile("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def render(template: str, /, *, script: str = "report.js", **values: Any) -> str:
    """The page that ``templates/<template>.html.jinja`` makes of ``values``; equal values give equal text.

    Args:
        template: Its name.
        script: The page's own script, beside the template; "report.js" draws charts and comes with plotly.
        values: What the template shows.

    Raises:
        jinja2.UndefinedError: If the template asks for a value that is not there.
    """
    scripts = [*([get_plotlyjs()] if script == "report.js" else []), _asset(script)]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return _ENVIRONMENT.get_template(f"{template}.html.jinja").render(
        palette=PAGE,
        style=Markup(_asset("report.css")),
        scripts=[Markup(script) for script in scripts],
        script_hashes=Markup(hashes),
        made_with=_installed(),
        **values,
    )


def showable(text: str) -> str:
    """``text`` with U+FFFD for control characters, unpaired surrogates and changes of direction."""
    return _UNSHOWABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def cut(text: str, limit: int) -> str:
    """The first ``limit`` characters, and how many more there are."""
    return text if len(text) <= limit else f"{text[:limit]} … [{len(text) - limit} more characters]"


def number(value: float, *, signed: bool = False) -> str:
    """Three digits after the point; "n/a" for NaN."""
    if math.isnan(value):
        return "n/a"
    return f"{value:{'+' if signed else ''}.3f}".replace("-", "\N{MINUS SIGN}")


def ends(interval: Interval) -> str:
    """Both ends of an interval; "n/a" where the data cannot tell."""
    return f"{number(interval.low)} to {number(interval.high)}" if interval.is_defined else "n/a"


def embedded(value: Any) -> Markup:
    """``value`` as JSON for a script element: nothing in it can end the element, and a browser can parse all of it."""
    return htmlsafe_json_dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Chart):
        return _plain(value.figure.to_plotly_json())
    if isinstance(value, Mapping):
        return {showable(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return showable(value) if isinstance(value, str) else value


def _finalize(value: Any) -> Any:
    return showable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _asset(name: str) -> str:
    return (files("lit_rlhf.reports") / "templates" / name).read_text(encoding="utf-8")


def _installed() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


_ENVIRONMENT = Environment(
    loader=PackageLoader("lit_rlhf.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_finalize,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"cut": cut, "number": number, "ends": ends, "embedded": embedded}
