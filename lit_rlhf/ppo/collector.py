"""What a data module of rollouts needs of the module it feeds."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from lit_rlhf.ppo.plan import BatchingConfig
from lit_rlhf.types import Experience, PromptBatch


class ExperienceCollector(ABC):
    """A module that turns prompts into experience: ``PPOModule``, or another module for ``RolloutDataModule``."""

    @property
    @abstractmethod
    def group_size(self) -> int:
        """Responses to each prompt, consecutive rows of a rollout."""

    @abstractmethod
    def response_length(self, *, training: bool) -> int:
        """Most tokens of a response, in training or in evaluation: the width of the random numbers."""

    @abstractmethod
    def check_context(self, total_length: int) -> None:
        """Refuse, before weights are read, rows that do not fit the policy's positions; called for each split.

        Args:
            total_length: Tokens of the longest prompt and of a whole response together.

        Raises:
            ValueError: They do not fit.
        """

    @abstractmethod
    def collect(
        self, prompts: PromptBatch, uniforms: Tensor, *, batching: BatchingConfig, iteration: int
    ) -> Experience:
        """One iteration's experience; called on all ranks, on their own rows.

        Args:
            prompts: This rank's prompts, b = ``rollout_batch_size`` / ranks rows, on the rank's device.
            uniforms: Random numbers of the sampler, ``(b, response_length)`` float64.
            batching: Sizes of the iteration; they fix the micro-batches of the updates.
            iteration: Iteration number, from 0.
        """
