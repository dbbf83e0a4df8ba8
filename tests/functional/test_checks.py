"""What hooks give is looked at where it is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_rlhf.functional.checks import two_columns

LIKE = torch.zeros(2, 3)


def test_a_pair_of_columns_passes() -> None:
    first, second = two_columns("`hook` (Mine)", (LIKE, LIKE > 0), LIKE)
    assert first is LIKE
    assert second.dtype == torch.bool


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (LIKE, r"\(\(2, 3\)\)"),
        ((LIKE, LIKE, LIKE), r"\(\(2, 3\), \(2, 3\), \(2, 3\)\)"),
        ((LIKE.mean(), LIKE), r"\(\(\), \(2, 3\)\)"),
        ((LIKE, LIKE[:, :1]), r"\(\(2, 3\), \(2, 1\)\)"),
        ((LIKE, 0.5), r"\(\(2, 3\), float\)"),
        (None, r"\(NoneType\)"),
    ],
)
def test_anything_else_is_refused_by_name(given: Any, found: str) -> None:
    with pytest.raises(ValueError, match=rf"^`hook` \(Mine\) must give two tensors of shape \(2, 3\), not {found}\.$"):
        two_columns("`hook` (Mine)", given, LIKE)
