"""Supervised fine-tuning (and pretraining): the stage before the reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_rlhf.config import ModelConfig, OptimizerConfig, ScheduleConfig, group
from lit_rlhf.data.batching import check_pass_tokens
from lit_rlhf.data.micro import SUPERVISED_TOKENS, row_micro_batches
from lit_rlhf.distributed import all_reduce_sum, rank
from lit_rlhf.functional.diagnostics import perplexity
from lit_rlhf.functional.losses import lm_loss, normalized_sum
from lit_rlhf.models.export import export_policy, export_policy_adapter
from lit_rlhf.models.loading.configured import load_policy, load_tokenizer_for
from lit_rlhf.models.loading.objects import ModelLike, model_source
from lit_rlhf.models.scoring import text_logprobs
from lit_rlhf.models.uses import ModelUse, PassSizes, supervised_sizes
from lit_rlhf.modules.base import BaseModule, trained_parameters
from lit_rlhf.modules.prompt_evaluator import PromptEvaluator
from lit_rlhf.rollout.engine import RolloutEngine
from lit_rlhf.rollout.requests import generation_request, reward_request
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import DeviceBatch, PromptBatch, TextBatch


class SFTModule(BaseModule):
    """Language modeling of responses (dialogues) or of every token (plain text).

    The loss is the mean negative log-likelihood over the learned tokens of the global batch.

    Args:
        policy: Folder or hub name of the model to train.
        optimizer: AdamW.
        schedule: Learning rate; the paper's cosine down to a tenth.
        model: How the model is loaded.
        micro_batch_tokens: Most tokens of one forward pass; None: 4096 on a CPU, 16384 on an accelerator.
        sampling: How ``predict`` answers prompts.
        engine: What generates them; default :class:`TransformersEngine`.
        on_non_finite: See ``BaseModule``.
    """

    def __init__(
        self,
        policy: ModelLike,
        optimizer: OptimizerConfig = OptimizerConfig(lr=9.5e-6),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        model: ModelConfig = ModelConfig(),  # noqa: B008
        micro_batch_tokens: int | None = None,
        sampling: SamplingConfig = SamplingConfig(temperature=0.8, top_p=0.9),  # noqa: B008
        on_non_finite: Literal["stop", "skip"] = "stop",
        engine: RolloutEngine | None = None,
    ) -> None:
        super().__init__(model=model, optimizer=optimizer, schedule=schedule, on_non_finite=on_non_finite)
        check_pass_tokens("micro_batch_tokens", micro_batch_tokens)
        self.policy_path = model_source(policy, "policy")
        self.micro_batch_tokens = micro_batch_tokens
        self.evaluator = PromptEvaluator(sampling=group(SamplingConfig, sampling, "sampling"))
        self.engine = engine or TransformersEngine()
        self.policy: Any = None

    def load_models(self) -> None:
        """See ``BaseModule``."""
        self.tokenizer = load_tokenizer_for(self.policy_path, self.model_config)
        self.policy = load_policy(self.policy_path, self.model_config)
        self.engine.setup(tokenizer=self.tokenizer, device=self.target_device)

    def parameter_groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """One group, `policy`."""
        return {"policy": (trained_parameters(self.policy), self.optimizer_config.lr)}

    def sources(self) -> dict[str, str]:
        """See ``BaseModule``."""
        return {"policy": self.policy_path, "tokenizer": self.policy_path}

    def memory_models(self) -> list[ModelUse]:
        """The policy."""
        return [ModelUse(role="policy", path=self.policy_path, causal=True, trained=True, loading=self.model_config)]

    def pass_sizes(self, data: Any, *, ranks: int, device: str) -> PassSizes:
        """Rows of ``data.max_length`` tokens."""
        return supervised_sizes(
            width=data.max_length, pass_tokens=SUPERVISED_TOKENS.on(device, self.micro_batch_tokens)
        )

    @property
    def token_budget(self) -> int:
        """Most tokens of one forward pass on this module's device."""
        return SUPERVISED_TOKENS.on(self.device, self.micro_batch_tokens)

    def export(self, path: str | Path) -> None:
        """Write the model (with `adapter`, the adapter) and its tokenizer as a Hugging Face folder; rank 0 writes."""
        self.check_loaded()
        if rank() == 0:
            write = export_policy if self.model_config.adapter is None else export_policy_adapter
            write(self.policy, self.tokenizer, path, template=self.template)

    def training_step(self, batch: DeviceBatch[TextBatch], batch_idx: int) -> None:
        """One global batch, one optimizer step."""
        text = self.content(batch, TextBatch)
        tokens = max(1.0, float(all_reduce_sum(text.loss_mask[:, 1:].sum().double())))
        parts = row_micro_batches(text.attention_mask, self.token_budget)
        result = self.optimize([lambda rows=rows: [self.text_loss(text.rows(rows), tokens)] for rows in parts])  # type: ignore[misc]
        if result is not None:
            loss = float(result["loss"])
            metrics = {"loss/lm": loss, "train/perplexity": perplexity(loss), "update/tokens": tokens}
            metrics["update/grad_norm"] = float(result["grad_norm"])
            self.log_values({**metrics, **self.learning_rates()}, prog_bar=("loss/lm",))

    def text_loss(self, text: TextBatch, num_tokens: float) -> Tensor:
        """Negative log-likelihood of the learned tokens over ``num_tokens``, a scalar."""
        logprobs, mask = text_logprobs(self.policy, text, logits_gib=self.model_config.logits_gib)
        return normalized_sum(lm_loss(logprobs), mask, num_tokens)

    def on_validation_epoch_start(self) -> None:
        """Start the sums."""
        self._sums = torch.zeros(2, dtype=torch.float64, device=self.device)

    def on_test_epoch_start(self) -> None:
        """Start the sums."""
        self.on_validation_epoch_start()

    def validation_step(self, batch: DeviceBatch[TextBatch], batch_idx: int) -> None:
        """Add a batch's negative log-likelihood and token count."""
        self.policy.eval()
        for rows in row_micro_batches(batch.content.attention_mask, self.token_budget, equalize=False):
            text = batch.content.rows(rows)
            logprobs, mask = text_logprobs(self.policy, text, logits_gib=self.model_config.logits_gib)
            self._sums += torch.stack([-logprobs[mask].double().sum(), mask.sum().double()])

    def test_step(self, batch: DeviceBatch[TextBatch], batch_idx: int) -> None:
        """The same as validation, on the test split."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log loss (nats per token) and perplexity as ``val/...``."""
        self._finish("val")

    def on_test_epoch_end(self) -> None:
        """Log loss (nats per token) and perplexity as ``test/...``."""
        self._finish("test")

    def _finish(self, stage: str) -> None:
        total, tokens = all_reduce_sum(self._sums).tolist()
        loss = total / max(1.0, tokens)
        self.log_values({f"{stage}/loss": loss, f"{stage}/perplexity": perplexity(loss)})
        if stage == "val":
            self.policy.train()

    def on_predict_epoch_start(self) -> None:
        """The engine learns of the weights."""
        self.policy.eval()
        self.evaluator.start()
        self.engine.sync(self.policy)

    def predict_step(self, batch: DeviceBatch[PromptBatch], batch_idx: int) -> list[dict[str, Any]]:
        """Responses to prompts as JSON-able rows, with the fixed evaluation seed."""
        return self.evaluator.attempt(lambda: self.answer(batch.content))

    def answer(self, prompts: PromptBatch) -> list[dict[str, Any]]:
        """Responses to prompts as JSON-able rows."""
        evaluator = self.evaluator
        request = generation_request(
            self.policy, self.tokenizer, prompts, evaluator.uniforms(prompts), evaluator.sampling
        )
        return evaluator.rows(reward_request(self.tokenizer, self.engine.generate(request)))

    def on_predict_epoch_end(self) -> None:
        """The engine rests; what failed on one rank ends all."""
        self.engine.rest()
        self.check_predictions()

    def check_predictions(self) -> None:
        """End all ranks where a batch failed on one of them; called before predictions are written."""
        self.evaluator.check()

    def teardown(self, stage: str) -> None:
        """The engine frees what it holds."""
        self.engine.close()
