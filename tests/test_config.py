"""Groups of options: what their fields may be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from lit_rlhf.config import ModelConfig, OptimizerConfig, ScheduleConfig, check_object, check_type, group


def test_a_group_of_somebody_elses_may_have_types_of_its_own():
    class Local:
        pass

    @dataclass(frozen=True, kw_only=True)
    class Mine(OptimizerConfig):
        extra: Local | None = None

    mine = Mine(lr=1e-3)
    assert group(OptimizerConfig, mine, "optimizer") is mine
    with pytest.raises(ValueError, match="`lr`"):
        group(OptimizerConfig, Mine(lr=True), "optimizer")

    @dataclass(frozen=True, kw_only=True)
    class Schedule(ScheduleConfig):
        extra: Local | None = None

    assert Schedule(kind="linear").kind == "linear"
    with pytest.raises(ValueError, match="`kind`"):
        Schedule(kind="quadratic")


def test_what_is_as_good_as_a_flag_a_number_or_a_path():
    assert group(ModelConfig, {"gradient_checkpointing": np.bool_(True)}, "model").gradient_checkpointing
    check_type("lr", np.float32(1e-3), float)
    check_type("r", np.int64(3), int)
    check_type("path", Path("x"), str)
    for value, kind in ((Path("x"), float), (np.bool_(True), float), (1, bool), ("1", float)):
        with pytest.raises(ValueError, match="`x`"):
            check_type("x", value, kind)


def test_betas_are_two():
    with pytest.raises(ValueError, match=r"`betas` \(\(0.9, 0.95, 0.9\)\) must be two numbers"):
        OptimizerConfig(betas=(0.9, 0.95, 0.9))  # type: ignore[arg-type]


def test_an_object_may_be_a_named_tuple():
    class Controller(NamedTuple):
        coef: float = 0.1

    check_object("KLController", Controller(), "kl_controller", "FixedKL()")
    with pytest.raises(ValueError, match="must be a KLController"):
        check_object("KLController", (0.1,), "kl_controller", "FixedKL()")
