"""Reward from a reward model: a folder with a scalar head, on the device or offloaded between phases."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_rlhf.config import ModelConfig
from lit_rlhf.data.batching import PassTokens, check_pass_tokens
from lit_rlhf.data.template import encode_piece, encode_rendered, response_end
from lit_rlhf.models.frozen import FrozenModel, Placement
from lit_rlhf.models.loading.adapted import load_frozen_scalar, shared_origin
from lit_rlhf.models.loading.checks import check_context, check_embeddings
from lit_rlhf.models.loading.objects import ModelLike, model_source
from lit_rlhf.models.loading.pretrained import as_dtype
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.models.loading.tokenizer import load_tokenizer, same_vocabulary
from lit_rlhf.models.scalar import ScalarModel, score_rows
from lit_rlhf.models.uses import ModelUse
from lit_rlhf.rewards.base import Reward
from lit_rlhf.types import RewardOutput, RewardRequest, Rollout

PASS_TOKENS = PassTokens(cpu=2048, accelerator=16384)
"""Tokens of a forward pass where nothing is said. It keeps no activations, so it may have more than a training pass."""


class ModelReward(Reward):
    """Score of a reward model at the last token of prompt + response.

    With the policy's own tokenizer the very token ids are scored; a finished response's last one becomes the end that
    the reward model was trained to read (``response_end``), since a policy may stop at any of several. With another
    tokenizer prompt and response are encoded again, each on its own as in training, with the policy's BOS and EOS in
    the prompt text exchanged for the reward model's, and its end after a response that has ended. The prompt stays in
    the policy's template: both models must have been trained with the same one. A response the length limit cut is
    scored without an end.

    Args:
        path: Local folder or hub name of a sequence-classification model with one label, of the MOSS-RLHF layout, or of
            an adapter with a head. Where policy or critic are adapters on the same base, it runs on their very weights.
        dtype: Of its weights; None for that of the policy's on the device (bf16 under DeepSpeed's bf16, else fp32), or
            whatever a shared base has. With another one than that it has weights of its own, an adapter merged.
        placement: ``"device"``, or ``"cpu"`` to bring a model of its own to the device for scoring only.
        max_batch_tokens: Most tokens, padding included, of one forward pass; None: 2048 on a CPU, where activations
            then stay in its caches, 16384 elsewhere.
        trust_remote_code: Run Python files that come with the model.
        name: Used in metrics and messages.

    Attributes:
        shares_vocabulary: Whether the policy's token ids mean the same to this model, after :meth:`setup`.
    """

    def __init__(
        self,
        path: ModelLike,
        *,
        dtype: str | None = None,
        placement: Placement = "device",
        max_batch_tokens: int | None = None,
        trust_remote_code: bool = False,
        name: str = "reward_model",
    ) -> None:
        as_dtype(dtype)
        if placement not in ("device", "cpu"):
            raise ValueError(f"`placement` must be 'device' or 'cpu', not '{placement}'.")
        check_pass_tokens("max_batch_tokens", max_batch_tokens)
        self.path, self.dtype = model_source(path, "path"), dtype
        self.placement, self.max_batch_tokens = placement, max_batch_tokens
        self.trust_remote_code, self.name = trust_remote_code, name
        self.shares_vocabulary = False
        self._model: FrozenModel[ScalarModel] | None = None
        self._tokenizer: Any = None
        self._policy_tokenizer: Any = None

    def setup(self, *, device: torch.device, tokenizer: Any) -> None:
        """Load the model and its tokenizer.

        Raises:
            FileNotFoundError: No such folder or hub name.
            ValueError: It is not a reward model (see ``load_scalar_model``), or its tokenizer cannot be used.
        """
        self._policy_tokenizer = tokenizer
        self._tokenizer = load_tokenizer(self.path, trust_remote_code=self.trust_remote_code)
        self.shares_vocabulary = same_vocabulary(tokenizer, self._tokenizer)
        scalar = self._load(device)
        check_embeddings(scalar.config, self._tokenizer)
        self._model = FrozenModel(scalar, placement=self.placement).to(device)

    def _load(self, device: torch.device) -> ScalarModel:
        trust = self.trust_remote_code
        shared = shared_origin(self.path, dtype=self.dtype, placement=self.placement, trust_remote_code=trust)
        if shared is not None:
            return load_frozen_scalar(self.path, *shared, check_on=device, trust_remote_code=trust)
        return load_scalar_model(self.path, head="load", dtype=self.dtype, trust_remote_code=trust, check_on=device)

    def score(self, request: RewardRequest) -> RewardOutput:
        """Score prompt + response at the last token, in packs of rows of similar length, on the rollout's device.

        Raises:
            ValueError: :meth:`setup` was not called, or a row is longer than the model's context.
        """
        if self._model is None:
            raise ValueError(f"Reward '{self.name}' has no model yet: call `setup` first.")
        rows = self._own_rows(request) if self.shares_vocabulary else self._encoded_rows(request)
        check_context(self._model.model.config, max(map(len, rows)))
        # Not the device of `setup`: a LightningModule that loads its models early is still on the CPU then.
        device = request.rollout.input_ids.device
        with self._model.on(device) as model:
            scores: Tensor = score_rows(
                model, rows, pad_token_id=self._tokenizer.eos_token_id,
                max_batch_tokens=PASS_TOKENS.on(device, self.max_batch_tokens),
                device=device,
            )  # fmt: skip
        return RewardOutput(scores=scores)

    def _own_rows(self, request: RewardRequest) -> list[list[int]]:
        end = response_end(self._tokenizer, template=request.template)
        rows = zip(id_rows(request.rollout), request.ended, strict=True)
        return [[*row[:-1], end] if ended else row for row, ended in rows]

    def _encoded_rows(self, request: RewardRequest) -> list[list[int]]:
        texts = zip(request.prompts, request.responses, request.ended, strict=True)
        own, policy = self._tokenizer, self._policy_tokenizer
        return [
            encode_again(own, translate_special(prompt, policy, own), response, ended=ended, template=request.template)
            for prompt, response, ended in texts
        ]

    def memory_models(self) -> list[ModelUse]:
        """The reward model."""
        role, loading = self.name.replace("_", " "), ModelConfig(trust_remote_code=self.trust_remote_code)
        place = self.placement
        return [ModelUse(role=role, path=self.path, causal=False, dtype=self.dtype, placement=place, loading=loading)]

    def _dtype_name(self) -> str | None:
        return self.dtype if self._model is None else str(self._model.dtype).removeprefix("torch.")

    def describe(self) -> dict[str, Any]:
        """Name, type, path and dtype."""
        return {**super().describe(), "path": self.path, "dtype": self._dtype_name(), "placement": self.placement}


def id_rows(rollout: Rollout) -> list[list[int]]:
    """The real tokens of each row, padding on either side dropped."""
    ids, mask = rollout.input_ids.cpu(), rollout.attention_mask.cpu().bool()
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]


def translate_special(text: str, source: Any, target: Any) -> str:
    """``text`` with the EOS of tokenizer ``source`` exchanged for that of ``target``, and a leading BOS dropped."""
    if source.bos_token:
        text = text.removeprefix(source.bos_token)
    return text.replace(source.eos_token, target.eos_token)


def encode_again(tokenizer: Any, prompt: str, response: str, *, ended: bool, template: str | None = None) -> list[int]:
    """Token ids of prompt + response as in training, encoded apart so that the boundary is exact.

    One BOS in front where the tokenizer has one of its own, its end behind where the response has ended. Special tokens
    count in the prompt; written in the response they are read as plain text.
    """
    ids = encode_rendered(tokenizer, prompt) + encode_piece(tokenizer, response)
    return [*ids, response_end(tokenizer, template=template)] if ended or not ids else ids
