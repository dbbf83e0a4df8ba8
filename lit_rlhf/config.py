"""Typed groups of options shared by the modules; every group is validated before any model loads."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

ScheduleKind = Literal["constant", "linear", "cosine", "inverse_sqrt"]
DType = Literal["float32", "bfloat16"]
BaseKind = Literal["float32", "bfloat16", "nf4"]


def require(condition: bool, name: str, value: object, rule: str) -> None:  # noqa: FBT001
    """Raise the library's usual ValueError unless ``condition`` holds: argument, value and rule."""
    if not condition:
        raise ValueError(f"`{name}` ({value}) {rule}.")


GroupT = TypeVar("GroupT")


def group(kind: type[GroupT], value: Any, name: str) -> GroupT:
    """``value`` as a group of options: itself, or made of a dict of them.

    Args:
        kind: The group's dataclass.
        value: One of it, or a mapping of its options.
        name: The argument's name, for messages.

    Raises:
        ValueError: It is neither, or has an option that the group has not.
    """
    if isinstance(value, kind):
        check_types(value)
        return value
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(value, Mapping):
        raise ValueError(f"`{name}` ({value!r:.80}) must be {kind.__name__}, or a dict of {', '.join(known)}.")
    unknown = next((key for key in value if key not in known), None)
    if unknown is not None:
        near = difflib.get_close_matches(str(unknown), known, n=1)
        hint = f"Did you mean `{near[0]}`?" if near else f"It has {', '.join(known)}."
        raise ValueError(f"`{name}` has no option `{unknown}`. {hint}")
    try:
        made = kind(**value)
        check_types(made)
        return made
    except TypeError as error:  # a comparison in `__post_init__`
        raise ValueError(f"`{name}` ({dict(value)!r:.200}) has a value of the wrong type: {error}.") from error


def _own_hints(options: object) -> dict[str, Any]:
    """Types of the fields that this library gave a group; names in a user's subclass need not resolve here."""
    found: dict[str, Any] = {}
    for kind in reversed(type(options).__mro__):
        if kind.__module__.partition(".")[0] == __name__.partition(".")[0]:
            found |= get_type_hints(kind)
    return found


_NUMBERS: dict[Any, tuple[Any, str]] = {int: (Integral, "a whole number"), float: (Real, "a number")}


def check_types(options: object) -> None:
    """Refuse, with ``ValueError``, a field that must be a number, a flag or a text and is something else."""
    for name, hint in _own_hints(options).items():
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        plain = [kind for kind in kinds if kind in (int, float, bool, str)]
        if len(plain) == len([kind for kind in kinds if kind is not NoneType]):
            check_type(name, getattr(options, name), *plain, optional=NoneType in kinds)


def check_type(name: str, value: Any, *kinds: type, optional: bool = False) -> None:
    """Refuse a value of another type; a flag is no number, and a number of another library's is one.

    Args:
        name: Of the argument.
        value: What was given.
        kinds: What it may be, of int, float, bool and str.
        optional: Whether it may be None.

    Raises:
        ValueError: Argument, value and rule.
    """
    if value is None and optional:
        return
    fits = [isinstance(value, _NUMBERS.get(kind, (kind, ""))[0]) for kind in kinds]
    fits += [str in kinds and isinstance(value, os.PathLike)]
    fits += [bool in kinds and type(value).__name__ in ("bool_", "bool")]  # NumPy's
    if not any(fits) or (isinstance(value, bool) and bool not in kinds):
        rule = " or ".join(_NUMBERS.get(kind, (kind, f"a {kind.__name__}"))[1] for kind in kinds)
        raise ValueError(f"`{name}` ({value!r:.80}) must be {rule}{', or None' if optional else ''}.")


def check_whole(sizes: Mapping[str, Any], optional: Mapping[str, Any]) -> None:
    """Refuse, with ``ValueError``, an argument that must be a whole number and is something else.

    Args:
        sizes: Arguments by name.
        optional: Those that may be None.
    """
    for name, value in {**sizes, **optional}.items():
        check_type(name, value, int, optional=name in optional)


def check_object(kind: str, value: Any, name: str, examples: str) -> None:
    """Refuse a plain value, or a class that was not called, where an object with methods belongs.

    Args:
        kind: Name of what it should be; other objects with its methods may do as well.
        value: What was given; None for the default.
        name: The argument's name.
        examples: How one is written.

    Raises:
        ValueError: Argument, value and examples.
    """
    if isinstance(value, type):
        raise ValueError(f"`{name}` ({value.__name__}) is a class: write `{value.__name__}(...)`.")
    if isinstance(value, str | bool | int | float | Mapping) or type(value) in (list, tuple):
        raise ValueError(f"`{name}` ({value!r:.80}) must be a {kind}: {examples}.")


def check_choices(options: object) -> None:
    """Refuse, with ``ValueError``, a field of ``options`` that is none of its type's literals: Python does not look."""
    for name, hint in _own_hints(options).items():
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        value = getattr(options, name)
        if choices and not (value is None and NoneType in kinds):
            require(value in choices, name, value, f"must be one of {', '.join(map(str, choices))}")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """A LoRA adapter (Hu et al. 2021, arXiv 2106.09685) in place of training all weights; needs the extra `peft`.

    Attributes:
        r: Rank.
        alpha: Scale of the update, alpha / r (alpha / sqrt(r) with ``rslora``).
        target_modules: Names of the layers to adapt, or `all-linear`; None for peft's choice for the architecture.
        dropout: On the adapter's input. PPO needs 0: the update must see the distribution that sampled.
        rslora: Rank-stabilized scale (Kalajdzievski 2023, arXiv 2312.03732).
        dora: Magnitude and direction apart (Liu et al. 2024, arXiv 2402.09353).
        base: How the frozen base is kept: `float32`, `bfloat16`, or its linear layers in four bits, `nf4` (QLoRA,
            Dettmers et al. 2023, arXiv 2305.14314; needs the extra `qlora`). None: as trained weights are, bf16 under
            DeepSpeed's bf16, else fp32.
    """

    r: int = 16
    alpha: float = 32.0
    target_modules: list[str] | str | None = None
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    base: BaseKind | None = None

    def __post_init__(self) -> None:
        require(self.r >= 1, "adapter.r", self.r, "must be at least 1")
        require(self.alpha > 0, "adapter.alpha", self.alpha, "must be positive")
        require(0 <= self.dropout < 1, "adapter.dropout", self.dropout, "must lie in [0, 1)")
        require(
            self.base in (None, "float32", "bfloat16", "nf4"),
            "adapter.base",
            self.base,
            "must be float32, bfloat16 or nf4",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """How models are loaded.

    Attributes:
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`, ...; None for transformers' own choice.
        gradient_checkpointing: Trade compute for activation memory in the trained models.
        trust_remote_code: Whether code from a model's folder may run. Off unless you set it.
        pad_token: Special token of the vocabulary to pad with, in place of the tokenizer's own; where it has none, EOS.
        adapter: Train a LoRA adapter and keep the model's own weights frozen; None trains all of them. Models of one
            run on one folder then share its weights (docs/adapters.md).
        freeze_layers: Without an adapter: keep the embeddings and this many of the first layers as they are. An output
            embedding that is tied to the input's is frozen with it.
        logits_gib: Most memory for logits at a time, in GiB: tokens x vocabulary x 8 bytes (with their gradient).
            Smaller means more passes over the output embedding; on a CPU the numbers stay the same up to the order in
            which the passes' gradients are summed. None: 1 on a CPU, 2 on an accelerator.
        liger_kernel: Fused norms, rotary embedding and MLP of liger-kernel (extra `liger`) on a GPU, for policy,
            reference and critic, or the model of the stage. Equal up to rounding; on a CPU a warning, and nothing.
    """

    attn_implementation: str | None = None
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    pad_token: str | None = None
    adapter: AdapterConfig | None = None
    freeze_layers: int = 0
    logits_gib: float | None = None
    liger_kernel: bool = False

    def __post_init__(self) -> None:
        require(self.freeze_layers >= 0, "freeze_layers", self.freeze_layers, "must not be negative")
        if self.adapter is not None:  # a dict, in Python
            object.__setattr__(self, "adapter", group(AdapterConfig, self.adapter, "adapter"))
        both = self.freeze_layers > 0 and self.adapter is not None
        require(not both, "freeze_layers", self.freeze_layers, "excludes `adapter`, which freezes all layers")
        require(self.logits_gib is None or self.logits_gib > 0, "logits_gib", self.logits_gib, "must be positive")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) and the global gradient clip (detail 12 of the paper's Figure 5).

    Attributes:
        lr: Peak learning rate.
        betas: Decay rates of the moments; the release's (0.9, 0.95).
        eps: Added to the denominator; the release's 1e-6.
        weight_decay: Decoupled decay a step, times the learning rate.
        max_grad_norm: Global L2 norm to clip to; 0 switches clipping off.
    """

    lr: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-6
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.lr >= 0, "lr", self.lr, "must not be negative")
        require(self.eps > 0, "eps", self.eps, "must be positive")
        require(len(self.betas) == 2, "betas", self.betas, "must be two numbers")
        require(all(0 <= b < 1 for b in self.betas), "betas", self.betas, "must lie in [0, 1)")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "must not be negative")
        require(self.max_grad_norm >= 0, "max_grad_norm", self.max_grad_norm, "must not be negative")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over optimizer steps, as a factor of the peak.

    Linear warm-up (never under ``min_ratio`` of the peak), then `constant`, `linear` or `cosine` down to ``min_ratio``
    at the last step, or `inverse_sqrt` of the step (the release's).

    Attributes:
        kind: Shape after the warm-up.
        warmup: Steps of warm-up: a fraction of all steps when below 1, a count otherwise.
        min_ratio: Lowest factor.
    """

    kind: ScheduleKind = "cosine"
    warmup: float = 0.1
    min_ratio: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self)
        require(self.warmup >= 0, "warmup", self.warmup, "must not be negative")
        require(0 <= self.min_ratio <= 1, "min_ratio", self.min_ratio, "must be in [0, 1]")

    def warmup_steps(self, total_steps: float) -> int:
        """Steps of warm-up out of ``total_steps`` (which may be infinite).

        Raises:
            ValueError: If the warm-up is a fraction and the number of steps is not bounded.
        """
        if self.warmup >= 1 or self.warmup == 0:
            return int(self.warmup)
        require(
            math.isfinite(total_steps), "warmup", self.warmup, "is a fraction, which needs a bounded number of steps"
        )
        return max(1, int(self.warmup * total_steps))

    def factor(self, step: int, total_steps: float) -> float:
        """Factor of the peak learning rate at optimizer step ``step`` (0 is the first)."""
        warmup = self.warmup_steps(total_steps)
        if step < warmup:
            return max(self.min_ratio, (step + 1) / warmup)
        if self.kind == "constant":
            return 1.0
        if self.kind == "inverse_sqrt":
            return max(self.min_ratio, math.sqrt(max(1, warmup) / max(1, step + 1)))
        done = min(1.0, (step - warmup) / max(1.0, total_steps - warmup))
        shape = 0.5 * (1 + math.cos(math.pi * done)) if self.kind == "cosine" else 1 - done
        return self.min_ratio + (1 - self.min_ratio) * shape
