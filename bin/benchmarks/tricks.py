"""What makes an iteration fast on a CPU, by name, and how to leave it out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence


def _without_huge_pages() -> None:
    os.environ["THP_MEM_ALLOC_ENABLE"] = "0"  # read at the first tensor, which is still to come


def _without_last_layer() -> None:
    from lit_rlhf.models.cpu import last_layer

    last_layer.seen_at = lambda *_: None


def _without_packed_rows() -> None:
    from lit_rlhf.models.cpu import packed_rows

    packed_rows.hidden_at = lambda *_: None


def _without_attention_parts() -> None:
    from lit_rlhf.models.cpu import attention

    attention.FEWEST_KEYS = attention.MOST_KEYS + 1  # of rows that are read whole
    attention._parts = lambda at: [at]


def _without_kernel_choice() -> None:
    os.environ["LIT_RLHF_CPU_PRODUCTS"] = "torch"


def _without_trim() -> None:
    from lit_rlhf.models.cpu import memory

    memory.trim = lambda: False


def _without_fused_adamw() -> None:
    from lit_rlhf.modules import base

    base.FUSED_DEVICES = ("none", "none")


def _without_dropped_rows() -> None:
    from lit_rlhf.rollout.transformers_engine import TransformersEngine

    begin = TransformersEngine.__init__

    def keep_rows(self: TransformersEngine, **options: object) -> None:
        begin(self, **{**options, "drop_every": 1 << 20})  # type: ignore[arg-type]

    TransformersEngine.__init__ = keep_rows  # type: ignore[method-assign]


_OUT: dict[str, Callable[[], None]] = {
    "huge_pages": _without_huge_pages,
    "last_layer": _without_last_layer,
    "packed_rows": _without_packed_rows,
    "attention_parts": _without_attention_parts,
    "kernel_choice": _without_kernel_choice,
    "trim": _without_trim,
    "fused_adamw": _without_fused_adamw,
    "dropped_rows": _without_dropped_rows,
}
NAMES = tuple(_OUT)


def leave_out(names: Sequence[str]) -> None:
    """Switch them off for the rest of this process; before the first tensor is made."""
    for name in names:
        _OUT[name]()
