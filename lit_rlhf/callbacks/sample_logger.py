"""Responses one can read, with what the models say of every token."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_rlhf.callbacks.hooks import ExperienceLike, RolloutCallback, append_to_run, iteration_of
from lit_rlhf.callbacks.loggers import log_texts
from lit_rlhf.functional.kl import k1

FILENAME = "samples.jsonl"


class SampleLogger(RolloutCallback):
    """Writes responses with score and KL to ``samples.jsonl`` and to the loggers that show text.

    Those are TensorBoard, Weights & Biases (a table) and MLflow (an artifact), where they are attached.

    *Fixed* samples are the first ``fixed`` rows of each validation
    (:func:`~lit_rlhf.callbacks.hooks.emit_validation`): the same prompts every time, those of the sanity check before
    training being the SFT model's. *Random* samples are drawn from the training rollout by ``(seed, iteration)``. Both
    come from rank zero's rows.

    One line per response: ``iteration, step, kind ("fixed" | "random"), index, prompt, response, score, kl`` (mean per
    token, nats; null without a reference), ``kl_sequence, ended, tokens`` (texts) and ``columns``: one list per column
    of ``logprob, ref_logprob, kl``, and for random samples ``advantage, value, reward`` where the experience has them.

    Loggers with different arguments may share a trainer; they write into one file.

    Args:
        fixed: Held-out prompts to follow.
        random: Responses of the training rollout, each time.
        every_n_iterations: Rollouts between two random draws.
        seed: Seed of the draw.

    Raises:
        ValueError: If a count is negative or ``every_n_iterations`` is under 1.
    """

    def __init__(self, fixed: int = 8, random: int = 4, every_n_iterations: int = 10, seed: int = 0) -> None:
        if fixed < 0 or random < 0:
            raise ValueError(f"`fixed` ({fixed}) and `random` ({random}) must not be negative.")
        if every_n_iterations < 1:
            raise ValueError(f"`every_n_iterations` ({every_n_iterations}) must be at least 1.")
        self.fixed = fixed
        self.random = random
        self.every_n_iterations = every_n_iterations
        self.seed = seed
        self._rollouts = 0
        self._validated = 0
        self._followed = 0

    @property
    def state_key(self) -> str:
        """Of its own for each set of arguments."""
        return self._generate_state_key(
            fixed=self.fixed, random=self.random, every_n_iterations=self.every_n_iterations, seed=self.seed
        )

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike) -> None:
        """Draw random rows and write them."""
        due = self._rollouts % self.every_n_iterations == 0
        self._rollouts += 1
        if due and trainer.is_global_zero:
            draw = torch.Generator().manual_seed(self.seed * 1_000_003 + self._rollouts)
            rows = torch.randperm(len(experience.scores), generator=draw)[: self.random].tolist()
            self._write(trainer, [_sample(trainer, pl_module, experience, "random", row, row) for row in rows])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that there is nothing to follow.

        Where the first epochs have no validation, Lightning has not asked for held-out rows yet: then at the end.
        """
        self._followed = 0
        if trainer.limit_val_batches == 0 or trainer.val_dataloaders is not None:
            self._tell_of_none(sum(trainer.num_val_batches))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say that there was nothing to follow, if the start could not."""
        if trainer.val_dataloaders is None and trainer.limit_val_batches != 0:
            self._tell_of_none(self._followed)

    def _tell_of_none(self, found: float) -> None:
        if self.fixed and not found:
            rank_zero_warn(
                f"`SampleLogger` follows the first {self.fixed} rows of each validation, and there is none: {FILENAME} "
                "will hold random responses alone. Name prompts as `data.val` to see the same ones each time."
            )

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin to count the held-out rows."""
        self._validated = 0
        self._followed += 1

    def on_validation_rollout(
        self, trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike
    ) -> None:
        """Write the rows that belong to the fixed prompts."""
        if trainer.testing:
            return
        before, self._validated = self._validated, self._validated + len(experience.scores)
        rows = range(min(self.fixed, self._validated) - before)
        if trainer.is_global_zero:
            self._write(trainer, [_sample(trainer, pl_module, experience, "fixed", k, before + k) for k in rows])

    def state_dict(self) -> dict[str, Any]:
        """Rollouts seen."""
        return {"rollouts": self._rollouts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume the same draws."""
        self._rollouts = state_dict["rollouts"]

    def _write(self, trainer: L.Trainer, samples: list[dict[str, Any]]) -> None:
        append_to_run(trainer, FILENAME, samples)
        for kind in dict.fromkeys(sample["kind"] for sample in samples):
            texts = [(sample["index"], _markdown(sample)) for sample in samples if sample["kind"] == kind]
            log_texts(trainer, f"samples/{kind}", texts, trainer.global_step)


def _sample(
    trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike, kind: str, row: int, index: int
) -> dict[str, Any]:
    """One response as primitives; ``row`` is its place in ``experience``, ``index`` its name."""
    mask = experience.response_mask[row]
    ids = experience.response_ids[row][mask].tolist()
    columns = {"logprob": experience.old_logprobs[row]}
    if experience.ref_logprobs is not None:
        columns["ref_logprob"] = experience.ref_logprobs[row]
        columns["kl"] = k1(columns["logprob"], columns["ref_logprob"])
    for name, source in (("advantage", "advantages"), ("value", "old_values"), ("reward", "rewards")):
        column = getattr(experience, source, None)
        if column is not None and kind == "random":  # nothing is learned from held-out responses
            columns[name] = column[row]
    drift = columns["kl"][mask] if "kl" in columns else None
    ended = getattr(experience, "ended", None)
    return {
        "iteration": iteration_of(trainer, pl_module),
        "step": trainer.global_step,
        "kind": kind,
        "index": index,
        "prompt": _prompt(pl_module, experience, row),
        "response": _decode(pl_module, ids),
        "score": float(experience.scores[row]),
        "kl": None if drift is None else float(drift.sum()) / max(1, len(ids)),
        "kl_sequence": None if drift is None else float(drift.sum()),
        "ended": None if ended is None else bool(ended[row]),
        "tokens": [_decode(pl_module, [token], skip_special_tokens=False) for token in ids],
        "columns": {name: _floats(column[mask]) for name, column in columns.items()},
    }


def _prompt(pl_module: L.LightningModule, experience: ExperienceLike, row: int) -> str:
    ids, mask = getattr(experience, "prompt_ids", None), getattr(experience, "prompt_mask", None)
    if ids is None:
        return ""
    kept = ids[row] if mask is None else ids[row][mask[row]]
    return _decode(pl_module, kept.tolist(), skip_special_tokens=False)


def _decode(pl_module: L.LightningModule, ids: list[int], *, skip_special_tokens: bool = True) -> str:
    tokenizer: Any = getattr(pl_module, "tokenizer", None)
    if tokenizer is None:
        return " ".join(f"<{token}>" for token in ids)
    return str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def _floats(column: Tensor) -> list[float]:
    return [round(x, 5) for x in column.detach().double().tolist()]


def _markdown(sample: dict[str, Any]) -> str:
    kl = "" if sample["kl"] is None else f"KL {sample['kl']:.4f} per token, "
    facts = f"score {sample['score']:.3f}, {kl}{len(sample['tokens'])} tokens"
    # Indented blocks: TensorBoard renders markdown, and a response must not be able to.
    blocks = ["    " + sample[key].replace("\n", "\n    ") for key in ("prompt", "response")]
    return f"**{facts}**\n\nPrompt\n\n{blocks[0]}\n\nResponse\n\n{blocks[1]}"
