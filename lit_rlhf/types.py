"""The columns that flow from prompt to update, as frozen keyword-only dataclasses.

Each stage adds columns and edits none. Letters: B responses, P prompt tokens, T response tokens, L tokens of a whole
row. Every mask is bool and True means *keep*. Log-probabilities, values, rewards and advantages are fp32 always.

Lightning's precision plugins recurse into tensors, dicts and dataclasses and would cast their floats to bf16; what a
loader yields is therefore a :class:`DeviceBatch`, which they leave alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Record = Mapping[str, Any]

ROW_KEY = "lit_rlhf"
"""Key under which an evaluation prompt's record carries ``{"row": index, "sample": k}``."""
ColumnsT = TypeVar("ColumnsT", bound="Columns")
RolloutT = TypeVar("RolloutT", bound="Rollout")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Base of the column types: tensors, tuples and dicts of tensors that share their first dimension B."""

    def to(self: ColumnsT, device: torch.device | str) -> ColumnsT:
        """The same columns with every tensor on ``device``; dtypes are kept."""
        return self._with_tensors(lambda tensor: tensor.to(device))

    def rows(self: ColumnsT, index: Tensor) -> ColumnsT:
        """The rows ``index`` (int64, 1-D) of every column, in that order."""
        picks = index.tolist()
        tuples = {k: tuple(v[i] for i in picks) for k, v in self.as_dict().items() if isinstance(v, tuple)}
        devices = {column.device for column in self.as_dict().values() if isinstance(column, Tensor)}
        index_on = {device: index.to(device) for device in devices}  # one copy, not one a column
        taken = self._with_tensors(lambda tensor: tensor[index_on.get(tensor.device, index)])
        return dataclasses.replace(taken, **tuples)

    def as_dict(self) -> dict[str, Any]:
        """Plain dict of the columns: what a checkpoint stores (tensors, primitives, dicts of tensors)."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _with_tensors(self: ColumnsT, change: Callable[[Tensor], Tensor]) -> ColumnsT:
        changed: dict[str, Any] = {}
        for name, value in self.as_dict().items():
            if isinstance(value, Tensor):
                changed[name] = change(value)
            elif isinstance(value, Mapping):
                changed[name] = {key: change(column) for key, column in value.items()}
        return dataclasses.replace(self, **changed)

    def __len__(self) -> int:
        return next(len(v) for v in self.as_dict().values() if isinstance(v, Tensor))


@dataclass(frozen=True, kw_only=True)
class PromptBatch(Columns):
    """Prompts ready for generation.

    Attributes:
        prompt_ids: Left-padded token ids, ``(B, P)`` int64.
        prompt_mask: True at real tokens, ``(B, P)`` bool.
        records: The raw rows the prompts come from, length B, for rewards that are programs.
        group: Equal for the responses to one prompt, ``(B,)`` int64, the same numbers on any number of ranks; each row
            a group of its own where nothing is given.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    records: tuple[Record, ...]
    group: Tensor = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        given: Any = self.group
        if given is None:
            rows = torch.arange(len(self.prompt_ids), device=self.prompt_ids.device)
            object.__setattr__(self, "group", rows)


@dataclass(frozen=True, kw_only=True)
class Rollout(PromptBatch):
    """Prompts with sampled responses.

    Attributes:
        input_ids: Prompt (left-padded) then response (right-padded), ``(B, P + T)`` int64.
        attention_mask: True at real tokens of both, ``(B, P + T)`` bool.
        response_mask: True at response tokens up to and including the first EOS, ``(B, T)`` bool.
        ended: True where the response has its EOS; False where the length limit cut it, ``(B,)`` bool.
        sampler_logprobs: Log-probabilities of the drawn tokens under the raw logits as the sampler saw them,
            ``(B, T)`` fp32, zero outside the mask; None when the engine does not give them.
        sampler_entropies: Entropies of the distributions under the same logits, ``(B, T)`` fp32, zero outside the
            mask, nats; or None.
        extras: Columns of your own by name, ``(B, ...)``. They are moved, sliced, saved in the middle of an iteration
            and resumed like the others; one whose second dimension is T counts as per token (:meth:`up_to`).
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    ended: Tensor
    sampler_logprobs: Tensor | None = None
    sampler_entropies: Tensor | None = None
    extras: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def up_to(self: RolloutT, width: int) -> RolloutT:
        """The same rows with the first ``width`` response columns of everything that has T of them."""
        prompt, whole = self.prompt_length, self.response_mask.size(1)

        def cut(name: str, column: Any) -> Any:
            if name in ("input_ids", "attention_mask"):  # prompt and response
                return column[:, : prompt + width]
            per_token = isinstance(column, Tensor) and column.dim() > 1 and column.size(1) == whole
            return column[:, :width] if per_token and name not in ("prompt_ids", "prompt_mask") else column

        fields = {name: cut(name, column) for name, column in self.as_dict().items()}
        return dataclasses.replace(self, **{**fields, "extras": {k: cut(k, v) for k, v in self.extras.items()}})

    @property
    def prompt_length(self) -> int:
        """P: the padded prompt length."""
        return self.input_ids.size(1) - self.response_mask.size(1)

    @property
    def response_ids(self) -> Tensor:
        """The response columns of ``input_ids``, ``(B, T)`` int64."""
        return self.input_ids[:, self.prompt_length :]

    @property
    def response_lengths(self) -> Tensor:
        """Response tokens per row, EOS included, ``(B,)`` int64."""
        return self.response_mask.sum(1)


@dataclass(frozen=True, kw_only=True)
class ScoredRollout(Rollout):
    """A rollout with what the four models say of it.

    Attributes:
        old_logprobs: Log-probabilities of the response tokens under the policy before the update, raw logits,
            ``(B, T)`` fp32, zero outside the mask.
        ref_logprobs: The same under the reference, ``(B, T)`` fp32; None where there is no reference.
        old_values: Critic's values *before* each response token is drawn, ``(B, T)`` fp32; zeros when the advantage
            estimator needs no critic.
        scores: One scalar a response, ``(B,)`` fp32, raw: neither normalized nor clipped.
        token_scores: Per-token (process) rewards, ``(B, T)`` fp32; zeros where the reward gives none.
    """

    old_logprobs: Tensor
    ref_logprobs: Tensor | None
    old_values: Tensor
    scores: Tensor
    token_scores: Tensor


@dataclass(frozen=True, kw_only=True)
class Experience(ScoredRollout):
    """All an update needs.

    Attributes:
        rewards: Per token, KL penalty and shaped score included, ``(B, T)`` fp32 (paper eq. 19).
        advantages: Raw advantages, before any whitening, ``(B, T)`` fp32.
        returns: The critic's targets, ``(B, T)`` fp32.
    """

    rewards: Tensor
    advantages: Tensor
    returns: Tensor


@dataclass(frozen=True, kw_only=True)
class PreferenceBatch(Columns):
    """Preference pairs, each response a whole right-padded row of prompt + response + EOS.

    Attributes:
        chosen_ids: ``(B, Lc)`` int64.
        chosen_mask: ``(B, Lc)`` bool.
        rejected_ids: ``(B, Lr)`` int64.
        rejected_mask: ``(B, Lr)`` bool.
        prompt_length: Tokens of the prompt shared by both rows, ``(B,)`` int64.
        margin: Required score difference, ``(B,)`` fp32; zero where the data has none.
        records: The raw rows, length B.
    """

    chosen_ids: Tensor
    chosen_mask: Tensor
    rejected_ids: Tensor
    rejected_mask: Tensor
    prompt_length: Tensor
    margin: Tensor
    records: tuple[Record, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TextBatch(Columns):
    """Language-modelling rows (SFT, pretraining, ptx), right-padded.

    Attributes:
        input_ids: ``(B, L)`` int64.
        attention_mask: ``(B, L)`` bool.
        loss_mask: True at the tokens that are learned (the responses; for plain text every token but the first),
            ``(B, L)`` bool.
        records: The raw rows, length B.
    """

    input_ids: Tensor
    attention_mask: Tensor
    loss_mask: Tensor
    records: tuple[Record, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RewardRequest:
    """What a reward source is given: the same responses as ids and as text.

    Attributes:
        rollout: The token ids (with the policy's tokenizer).
        prompts: Prompt texts as the model saw them, special tokens kept, length B.
        responses: Response texts without special tokens, length B.
        records: The prompts' raw rows, length B.
        template: The named template that the prompts are in; None for the tokenizer's chat template.
    """

    rollout: Rollout
    prompts: Sequence[str]
    responses: Sequence[str]
    records: Sequence[Record]
    template: str | None = None

    @property
    def ended(self) -> list[bool]:
        """Whether each response has its EOS."""
        return [bool(x) for x in self.rollout.ended.tolist()]


@dataclass(frozen=True, kw_only=True)
class RewardOutput:
    """What a reward source gives back.

    Attributes:
        scores: ``(B,)`` fp32, finite.
        token_scores: Per-token rewards ``(B, T)`` fp32, or None.
    """

    scores: Tensor
    token_scores: Tensor | None = None


ContentT = TypeVar("ContentT")


class DeviceBatch(Generic[ContentT]):
    """An opaque envelope: Lightning moves it with ``.to`` and casts nothing inside it.

    Iterating yields one tensor whose first dimension is the batch size, which is what Lightning's batch-size
    inference looks for when a user's callback logs with ``on_epoch=True``.

    Args:
        content: The columns.
        info: Numbers about the global batch that this is one rank's part of, the same on every rank, such as
            ``global_rows`` and ``global_tokens`` for losses that are normalized globally.
    """

    def __init__(self, content: ContentT, info: Mapping[str, float] | None = None) -> None:
        self.content = content
        self.info: Mapping[str, float] = info or {}

    def to(self, device: torch.device | str) -> DeviceBatch[ContentT]:
        """The same batch with its content on ``device``."""
        return type(self)(self.content.to(device), self.info)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.content)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Tensor]:
        yield torch.empty(len(self), 0)
