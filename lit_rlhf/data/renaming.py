"""Columns under other names: ``columns: {prompt: question, chosen: answer}`` reads `question` as `prompt`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from lit_rlhf.data.records import Reason, RowError

NAMES = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "response",
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "text",
    "margin",
    "subset",
)
"""What formats read; any other column reaches rewards under its own name."""


def check_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """The mapping from our names to the data's, empty for None.

    Raises:
        ValueError: Not a mapping of names, or a name that no format reads.
    """
    if columns is None:
        return {}
    if not isinstance(columns, Mapping) or not all(isinstance(x, str) and x for x in (*columns, *columns.values())):
        raise ValueError(f"`columns` ({columns}) must map names: {{prompt: question}} reads `question` as `prompt`.")
    for name in columns:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            if columns[name] in NAMES:
                hint = f" The other way round: {{{columns[name]}: {name}}}."
            raise ValueError(f"`columns` has {name!r}, which no format reads: {', '.join(NAMES)}.{hint}")
    return dict(columns)


def renamed(row: Any, columns: Mapping[str, str]) -> Any:
    """A row under our names; a column that is renamed takes the place of one that has the name already.

    Raises:
        RowError: The row has no such column.
    """
    if not columns or not isinstance(row, dict):
        return row
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise RowError(Reason.WRONG_TYPES, f"`columns` names {missing[0]!r}; the row has {', '.join(row)[:200]}")
    rest = {key: value for key, value in row.items() if key not in columns.values()}
    return rest | {ours: row[theirs] for ours, theirs in columns.items()}
