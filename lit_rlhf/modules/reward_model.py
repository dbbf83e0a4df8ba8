"""The reward model: pairwise ranking with a language-model regularizer (paper section 2, eq. 1-2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lit_rlhf.callbacks.hooks import writes_files
from lit_rlhf.config import ModelConfig, OptimizerConfig, ScheduleConfig, require
from lit_rlhf.data.batching import check_pass_tokens
from lit_rlhf.data.memory import in_memory
from lit_rlhf.data.micro import SUPERVISED_TOKENS, length_micro_batches
from lit_rlhf.distributed import all_gather_object, all_reduce_sum, rank, run_together
from lit_rlhf.functional.logprobs import CHUNK_SIZE, chunked_logprobs
from lit_rlhf.functional.losses import lm_loss, normalized_sum
from lit_rlhf.functional.preference import accuracy, pairwise_loss
from lit_rlhf.models.export import export_scalar, export_scalar_adapter
from lit_rlhf.models.loading.configured import load_scalar, load_tokenizer_for
from lit_rlhf.models.loading.objects import ModelLike, model_source
from lit_rlhf.models.pair_forward import PairForward, pair_forward, pair_lengths
from lit_rlhf.models.scoring import logits_chunk
from lit_rlhf.models.uses import ModelUse, PassSizes, supervised_sizes
from lit_rlhf.modules.base import BaseModule, loading_of, trained_parameters
from lit_rlhf.modules.trainer_loop import run_directory
from lit_rlhf.reports.reward_page import write_reward_report
from lit_rlhf.reward_report import RewardReport, ScoredPair, scored_pairs
from lit_rlhf.reward_report.response_scorer import ResponseScorer
from lit_rlhf.types import DeviceBatch, PreferenceBatch


class RewardModelModule(BaseModule):
    r"""Scalar scores that rank the chosen response above the rejected one.

    .. math:: L = -\frac1N \sum \log\sigma(r_w - r_l - m) - \beta_{rm} \frac1M \sum_t \log p(y_{w,t})

    Args:
        model_path: Folder or hub name to start from: an SFT model (``head="fresh"``) or a reward model (``"load"``).
        head: Where the scalar head comes from. There is no silent third way.
        lm_coef: beta_rm; 1 in the paper's text, 0 in its release.
        optimizer: AdamW; the paper's 5e-6.
        schedule: Learning rate over steps.
        model: How the model is loaded.
        micro_batch_tokens: Most tokens of one forward pass; None: 4096 on a CPU, 16384 on an accelerator.
        num_layers: Keep the first layers of the trunk alone, where the head is fresh; None for all.
        on_non_finite: See ``BaseModule``.
    """

    def __init__(
        self,
        model_path: ModelLike,
        head: Literal["fresh", "load"] = "fresh",
        lm_coef: float = 1.0,
        optimizer: OptimizerConfig = OptimizerConfig(lr=5e-6),  # noqa: B008
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008
        model: ModelConfig = ModelConfig(),  # noqa: B008
        micro_batch_tokens: int | None = None,
        on_non_finite: Literal["stop", "skip"] = "stop",
        num_layers: int | None = None,
    ) -> None:
        model_path = model_source(model_path, "model_path")
        super().__init__(model=model, optimizer=optimizer, schedule=schedule, on_non_finite=on_non_finite)
        require(lm_coef >= 0, "lm_coef", lm_coef, "must not be negative")
        check_pass_tokens("micro_batch_tokens", micro_batch_tokens)
        if head == "load" and lm_coef > 0:
            raise ValueError(
                f"`lm_coef` ({lm_coef}) needs the LM head of a language model; `head: load` starts from a reward "
                "model, which has none: set it to 0."
            )
        require(num_layers is None or num_layers >= 1, "num_layers", num_layers, "must be at least 1")
        cut_under_head = head == "load" and num_layers is not None
        require(
            not cut_under_head, "num_layers", num_layers, "needs `head: fresh`: a trained head reads the last layer"
        )
        self.num_layers = num_layers
        self.model_path = model_path
        self.head: Literal["fresh", "load"] = head
        self.lm_coef = lm_coef
        self.micro_batch_tokens = micro_batch_tokens
        self.reward_model: Any = None
        self._head_is_trained = head == "load"

    def load_models(self) -> None:
        """See ``BaseModule``."""
        self.tokenizer = load_tokenizer_for(self.model_path, self.model_config)
        self.reward_model = load_scalar(
            self.model_path,
            self.model_config,
            head=self.head,
            lm_head=self.lm_coef > 0,
            num_layers=self.num_layers,
            check_on=self.target_device,
        )

    def parameter_groups(self) -> dict[str, tuple[list[nn.Parameter], float]]:
        """One group, `reward`."""
        return {"reward": (trained_parameters(self.reward_model), self.optimizer_config.lr)}

    def sources(self) -> dict[str, str]:
        """See ``BaseModule``."""
        return {"reward": self.model_path, "tokenizer": self.model_path}

    def part_loading(self) -> dict[str, dict[str, Any]]:
        """See ``BaseModule``."""
        return {"reward": loading_of(self.model_config, self.num_layers)}

    def memory_models(self) -> list[ModelUse]:
        """The reward model, with an LM head where its loss has one."""
        use = ModelUse(
            role="reward model",
            path=self.model_path,
            causal=self.lm_coef > 0,
            trained=True,
            num_layers=self.num_layers,
            loading=self.model_config,
        )
        return [use]

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
        """Write a folder that ``AutoModelForSequenceClassification`` (with `adapter`, peft) loads; rank 0 writes."""
        self.check_loaded()
        if rank() == 0:
            write = export_scalar if self.model_config.adapter is None else export_scalar_adapter
            write(self.reward_model, self.tokenizer, path, template=self.template)

    # ---------------------------------------------------------------- training

    def training_step(self, batch: DeviceBatch[PreferenceBatch], batch_idx: int) -> None:
        """One global batch of pairs, one optimizer step."""
        pairs = self.content(batch, PreferenceBatch)
        learned = response_tokens(pairs).double()
        counts = all_reduce_sum(torch.stack([learned.new_tensor(float(len(pairs))), learned.sum()]))
        sums = torch.zeros(5, dtype=torch.float64, device=self.device)
        parts = length_micro_batches(pair_lengths(self.reward_model, pairs), self.token_budget, self.device)
        result = self.optimize([partial(self.pair_shares, pairs.rows(rows), counts, sums) for rows in parts])
        if result is None:
            return
        ranking, lm, right, gap, score = all_reduce_sum(sums).tolist()
        number = float(counts[0])
        metrics = {
            "loss/ranking": ranking,
            "loss/lm": lm,
            "train/accuracy": right / number,
            "train/score_gap": gap / number,
            "train/score": score / number / 2,
            "update/pairs": number,
            "update/grad_norm": float(result["grad_norm"]),
        }
        self.log_values({**metrics, **self.learning_rates()}, prog_bar=("loss/ranking", "train/accuracy"))

    def pair_shares(self, pairs: PreferenceBatch, counts: Tensor, sums: Tensor) -> Iterator[Tensor]:
        """A micro-batch's share in the loss of the global batch, a scalar; what is logged is measured here.

        Args:
            pairs: The micro-batch.
            counts: Pairs and learned tokens of the global batch, ``(2,)``.
            sums: Added to in place: ranking loss, LM loss, right pairs, score gap, sum of scores, ``(5,)`` float64.
        """
        out = self.forward_pairs(pairs)
        ranking = self.ranking_loss(out.chosen, out.rejected, pairs).sum() / counts[0]
        loss = ranking.float()
        lm = torch.zeros_like(loss)
        if self.lm_coef > 0:
            model, gib = self.reward_model, self.model_config.logits_gib
            chunk = logits_chunk(model.trunk, self.device, gib=gib, most=CHUNK_SIZE)
            logprobs, _ = chunked_logprobs(out.response_hidden, model.lm_project, out.response_ids, chunk_size=chunk)
            learned = torch.ones_like(logprobs, dtype=torch.bool)
            lm = normalized_sum(lm_loss(logprobs), learned, float(counts[1]))
            loss = loss + self.lm_coef * lm
        with torch.no_grad():
            right = accuracy(out.chosen, out.rejected).sum()
            gap = (out.chosen - out.rejected).sum()
            total = (out.chosen + out.rejected).sum()
            sums += torch.stack([ranking, lm, right, gap, total]).double()
        yield loss

    def ranking_loss(self, chosen: Tensor, rejected: Tensor, pairs: PreferenceBatch) -> Tensor:
        """Loss of each pair (eq. 1); override for another ranking loss.

        Args:
            chosen: Scores of the preferred responses, ``(b,)`` fp32, with gradient.
            rejected: Scores of the others, ``(b,)`` fp32, with gradient.
            pairs: The micro-batch, with ``margin`` ``(b,)``.

        Returns:
            ``(b,)``; summed over the pairs and divided by those of the global batch afterwards.
        """
        return pairwise_loss(chosen, rejected, margin=pairs.margin)

    def forward_pairs(self, pairs: PreferenceBatch) -> PairForward:
        """Scores of both responses and what the LM loss needs."""
        return pair_forward(self.reward_model, pairs, with_response=self.lm_coef > 0)

    # ---------------------------------------------------------------- evaluation

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See ``BaseModule``."""
        super().on_load_checkpoint(checkpoint)
        self._head_is_trained = True

    def on_train_start(self) -> None:
        """See ``BaseModule``."""
        super().on_train_start()
        self._head_is_trained = True

    def on_validation_start(self) -> None:
        """See ``BaseModule``; inside a fit the head is what it is."""
        super().on_validation_start()
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._check_head()

    def on_test_start(self) -> None:
        """See ``BaseModule``."""
        super().on_test_start()
        self._check_head()

    def on_predict_start(self) -> None:
        """See ``BaseModule``."""
        super().on_predict_start()
        self._check_head()

    def _check_head(self) -> None:
        """Scores of a head that was drawn at random mean nothing.

        Raises:
            ValueError: If the head is fresh and neither trained nor from a checkpoint.
        """
        if not self._head_is_trained:
            raise ValueError(
                "`head: fresh` is an untrained head, whose scores mean nothing. Give a checkpoint (`--ckpt_path last`),"
                " or `head: load` with `lm_coef: 0` and a reward model, RUN/export/final for example, as `model_path`."
            )

    def on_validation_epoch_start(self) -> None:
        """Start an empty table."""
        self._rows: list[dict[str, Any]] = []

    def on_test_epoch_start(self) -> None:
        """Start an empty list."""
        self._pairs: list[ScoredPair] = []

    def on_predict_epoch_start(self) -> None:
        """Scores are returned, not kept."""
        self._rows = []

    def validation_step(self, batch: DeviceBatch[PreferenceBatch], batch_idx: int) -> None:
        """Score a batch of held-out pairs."""
        self._rows.extend(self.score_pairs(batch.content))

    def test_step(self, batch: DeviceBatch[PreferenceBatch], batch_idx: int) -> None:
        """Score a batch of test pairs, with texts, for the report."""
        pairs = batch.content
        rows = self.score_pairs(pairs)
        chosen, rejected = (
            torch.tensor([row[side] for row in rows], dtype=torch.float32) for side in ("chosen", "rejected")
        )
        self._pairs.extend(scored_pairs(pairs, chosen, rejected, self.tokenizer))

    def predict_step(self, batch: DeviceBatch[PreferenceBatch], batch_idx: int) -> list[dict[str, Any]]:
        """Rows with both scores and the raw record."""
        return self.score_pairs(batch.content)

    @torch.no_grad()
    def score_pairs(self, pairs: PreferenceBatch) -> list[dict[str, Any]]:
        """One row a pair: ``chosen``, ``rejected`` (scores), token counts of the responses, the raw record."""
        self.reward_model.eval()
        rows: list[dict[str, Any]] = [{} for _ in range(len(pairs))]
        lengths = pairs.chosen_mask.sum(1) - pairs.prompt_length, pairs.rejected_mask.sum(1) - pairs.prompt_length
        for part in length_micro_batches(
            pair_lengths(self.reward_model, pairs), self.token_budget, self.device, equalize=False
        ):
            out = pair_forward(self.reward_model, pairs.rows(part), with_response=False)
            for i, chosen, rejected in zip(part.tolist(), out.chosen.tolist(), out.rejected.tolist(), strict=True):
                rows[i] = {
                    "chosen": chosen,
                    "rejected": rejected,
                    "chosen_tokens": int(lengths[0][i]),
                    "rejected_tokens": int(lengths[1][i]),
                    "record": dict(pairs.records[i]) if pairs.records else {},
                }
        return rows

    def on_validation_epoch_end(self) -> None:
        """Log accuracy and ranking loss as ``val/...``."""
        self._finish("val")
        self.reward_model.train()

    def on_test_epoch_end(self) -> None:
        """Log the headline numbers as ``test/...`` and write the report (docs/reward_models.md); rank 0 writes."""
        pairs = [pair for part in all_gather_object(self._pairs) for pair in part]
        self._pairs = []
        report = run_together(lambda: self._write_report(pairs))
        self.log_values({f"test/{name}": value for name, value in report.summary().items()})

    def _write_report(self, pairs: list[ScoredPair]) -> RewardReport:
        report = RewardReport.from_scores(
            pairs,
            score_fn=self.response_scorer() if rank() == 0 else None,
            model=self.model_path,
            data=", ".join(test_sources(self.trainer)),
        )
        if rank() == 0 and writes_files(self.trainer):
            for path in write_reward_report(report, run_directory(self.trainer)):
                print(path)  # noqa: T201
        return report

    def response_scorer(self) -> ResponseScorer:
        """What the report's degenerate probes are scored with."""
        data = getattr(self.trainer, "datamodule", None)
        return ResponseScorer(
            self.reward_model,
            self.tokenizer,
            template=getattr(data, "template", None),
            max_length=getattr(data, "max_length", 2048),
            max_batch_tokens=self.token_budget,
            device=self.device,
        )

    def _finish(self, stage: str) -> list[dict[str, Any]]:
        rows = [row for part in all_gather_object(self._rows) for row in part]
        self._rows = []
        if rows:
            self.log_values(ranking_metrics(rows, stage), prog_bar=(f"{stage}/accuracy",))
        return rows


def test_sources(trainer: Any) -> list[str]:
    """What the test pairs were read from, for the report's head."""
    paths = getattr(getattr(trainer, "datamodule", None), "paths", {})
    found: Any = next((paths[name] for name in ("test", "train") if paths.get(name) is not None), [])
    memory = in_memory(found)
    if memory is not None:
        return [repr(memory)]
    return [found] if isinstance(found, str) else [str(path) for path in found]


def ranking_metrics(rows: Sequence[dict[str, Any]], stage: str) -> dict[str, float]:
    """Accuracy (ties count half), its Wilson 95 % interval, mean ranking loss and mean score gap."""
    from lit_rlhf.evaluation.intervals import wilson_interval

    chosen = torch.tensor([row["chosen"] for row in rows])
    rejected = torch.tensor([row["rejected"] for row in rows])
    right = accuracy(chosen, rejected)
    interval = wilson_interval(float(right.sum()), len(rows))
    return {
        f"{stage}/accuracy": float(right.mean()),
        f"{stage}/accuracy_low": interval.low,
        f"{stage}/accuracy_high": interval.high,
        f"{stage}/loss": float(pairwise_loss(chosen, rejected).mean()),
        f"{stage}/score_gap": float((chosen - rejected).mean()),
    }


def response_tokens(pairs: PreferenceBatch) -> Tensor:
    """Tokens of each chosen response, ``(B,)`` int64."""
    return pairs.chosen_mask.sum(1) - pairs.prompt_length
