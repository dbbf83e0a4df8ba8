from __future__ import annotations

import pytest
import torch

from lit_rlhf.functional.checks import check_shapes


def test_shapes_that_differ_are_named():
    check_shapes(a=torch.zeros(2, 3), b=torch.ones(2, 3, dtype=torch.int64), c=torch.empty(2, 3))
    with pytest.raises(ValueError, match=r"`a` \(2, 3\) and `b` \(2, 1\) and `c` \(2, 3\) must have one shape."):
        check_shapes(a=torch.zeros(2, 3), b=torch.zeros(2, 1), c=torch.zeros(2, 3))
