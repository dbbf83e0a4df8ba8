"""Sees a pattern collapse coming, says why, and acts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from lit_rlhf.callbacks.collapse_rule import DIRECTIONS, METRICS, CollapseRule, Flag, RuleConfig
from lit_rlhf.callbacks.hooks import ExperienceLike, RolloutCallback, append_to_run, iteration_of, known_metrics
from lit_rlhf.callbacks.kl_monitor import KLMonitor
from lit_rlhf.callbacks.length_monitor import ResponseLengthMonitor
from lit_rlhf.callbacks.monitor import RolloutMonitor
from lit_rlhf.callbacks.perplexity_monitor import PerplexityMonitor
from lit_rlhf.callbacks.repetition_monitor import RepetitionMonitor
from lit_rlhf.callbacks.reward_distribution import RewardDistributionMonitor
from lit_rlhf.callbacks.rollback import checkpoint_before, restore
from lit_rlhf.config import group
from lit_rlhf.distributed import any_rank

FILENAME = "collapse.jsonl"
ACTIONS = ("warn", "stop", "raise_kl", "rollback")


class CollapseDetector(RolloutCallback):
    """Applies the joint rule of :mod:`~lit_rlhf.callbacks.collapse_rule` to every rollout and acts when it holds.

    Takes the signals from the module's ``rollout_metrics`` and measures, over all ranks, those that are not there; it
    needs none of the monitors. A module that never calls :func:`~lit_rlhf.callbacks.hooks.emit_rollout` is served
    through ``metric_names``: logged metrics, read at each epoch's end. Every flag is a warning, a line in
    ``collapse.jsonl`` of the run directory and the metric ``monitor/collapse/flagged``; ``monitor/collapse/index`` and
    ``forecast`` are logged each rollout. State resumes. Several detectors with different rules or actions may share a
    trainer; the metrics are then those of the last one.

    Actions:
        * ``warn``: nothing more.
        * ``stop``: ends training after the current batch.
        * ``raise_kl``: ``pl_module.kl_controller.raise_by(kl_factor)``.
        * ``rollback``: at the end of the epoch, weights, optimizer and the module's own checkpoint state go back to the
          newest checkpoint from before the onset, and ``kl_coef`` is raised by ``kl_factor`` (1 to leave it). Prompts,
          loops and learning-rate schedule go on, so the run does not repeat itself. Without such a checkpoint it stops.

    Args:
        action: What to do besides telling.
        rule: Constants of the rule, or a dict of them; None for the defaults, whose choice docs/collapse.md explains.
        kl_factor: Factor on the KL coefficient for ``raise_kl`` and ``rollback``.
        baseline: Signal values to compare with, e.g. of the SFT model; None for the first rollouts'.
        metric_names: Logged name of each signal, for modules without rollouts.
        checkpoint_dir: Where ``rollback`` looks; None for the folders of the trainer's checkpoint callbacks.

    Raises:
        ValueError: If ``action`` is unknown, ``kl_factor`` is under 1, or ``metric_names`` has unknown signals or lacks
            ``kl``; at the start of ``fit``, if the module has no KL controller and the action needs one, or a
            coefficient of 0 that it cannot raise.
    """

    def __init__(
        self,
        action: Literal["warn", "stop", "raise_kl", "rollback"] = "warn",
        rule: RuleConfig | None = None,
        kl_factor: float = 2.0,
        baseline: dict[str, list[float]] | None = None,
        metric_names: dict[str, str] | None = None,
        checkpoint_dir: str | None = None,
    ) -> None:
        if action not in ACTIONS:
            raise ValueError(f"`action` ({action!r}) must be one of {list(ACTIONS)}.")
        if not kl_factor >= 1:
            raise ValueError(f"`kl_factor` ({kl_factor}) must be at least 1.")
        unknown = set(metric_names or {}) - set(DIRECTIONS)
        if unknown or (metric_names is not None and "kl" not in metric_names):
            raise ValueError(f"`metric_names` ({metric_names}) must have 'kl' and only signals of {list(DIRECTIONS)}.")
        self.action = action
        self.kl_factor = kl_factor
        self.metric_names = metric_names
        self.checkpoint_dir = checkpoint_dir
        self.rule = CollapseRule(group(RuleConfig, rule or {}, "rule"), baseline)
        self.flags: list[dict[str, Any]] = []
        self._steps: dict[int, int] = {}
        self._pending: dict[str, float] = {}
        self._rollback_to: Path | None = None
        self._monitors: dict[str, RolloutMonitor] = {
            "kl": KLMonitor(),
            "length": ResponseLengthMonitor(),
            "perplexity": PerplexityMonitor(),
            "tail": RewardDistributionMonitor(),
            "distinct": (repetition := RepetitionMonitor(orders=(4,))),
            "variety": repetition,
        }

    @property
    def state_key(self) -> str:
        """Of its own for each rule, action and set of metrics."""
        return self._generate_state_key(action=self.action, rule=self.rule.config, metric_names=self.metric_names)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse early an action that could not be taken."""
        needs = self.action == "raise_kl" or (self.action == "rollback" and self.kl_factor > 1)
        if needs and not hasattr(pl_module, "kl_controller"):
            name = type(pl_module).__name__
            raise ValueError(f"`action` ({self.action!r}) needs `{name}.kl_controller.raise_by(factor)`.")
        if self.action == "raise_kl" and pl_module.kl_controller.value == 0:  # type: ignore[union-attr]
            raise ValueError("`action` ('raise_kl') needs a positive KL coefficient: no factor raises 0.")

    def on_rollout_end(self, trainer: L.Trainer, pl_module: L.LightningModule, experience: ExperienceLike) -> None:
        """Measure the rollout and judge it."""
        if self.metric_names is None:
            values = self.measure(pl_module, experience)
            self._judge(trainer, pl_module, iteration_of(trainer, pl_module), values)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log the judgement of the rollout before this batch."""
        self._flush(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Log the judgement of a rollout inside this batch."""
        self._flush(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judge named metrics; carry out a pending rollback, now that no experience is half used."""
        if self.metric_names is not None:
            logged = trainer.callback_metrics
            if self.metric_names["kl"] not in logged:
                raise ValueError(
                    f"`metric_names` ({self.metric_names['kl']!r}) is not logged; there are {sorted(logged)}."
                )
            values = {name: float(logged[metric]) for name, metric in self.metric_names.items() if metric in logged}
            self._judge(trainer, pl_module, trainer.current_epoch, values)
            self._flush(pl_module)
        if self._rollback_to is not None:
            restore(trainer, pl_module, self._rollback_to)
            self._raise_kl(pl_module)
            self.rule.forget_recent()
            self._rollback_to = None

    def measure(self, pl_module: L.LightningModule, experience: ExperienceLike) -> dict[str, float]:
        """The six signals of a rollout, over all ranks (a collective)."""
        known = known_metrics(pl_module)
        if METRICS["kl"] not in known and experience.ref_logprobs is None:
            raise ValueError(f"`CollapseDetector` needs `ref_logprobs` or the module's own {METRICS['kl']!r}.")
        values = {signal: float(known[metric]) for signal, metric in METRICS.items() if metric in known}
        for signal, monitor in self._monitors.items():
            if signal not in values:
                monitor.place(pl_module.device)
                values[signal] = monitor.measure(experience)[METRICS[signal]]
        # Scores that are all equal have no tail: that is no fault, unlike a NaN in a log-probability.
        absent = ("tail", "distinct", "variety")
        return {name: x for name, x in values.items() if name not in absent or math.isfinite(x)}

    def state_dict(self) -> dict[str, Any]:
        """The rule's state, the flags, and the step of every iteration."""
        return {"rule": self.rule.state_dict(), "flags": self.flags, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where the checkpoint was."""
        self.rule.load_state_dict(state_dict["rule"])
        self.flags, self._steps = state_dict["flags"], state_dict["steps"]

    def _judge(
        self, trainer: L.Trainer, pl_module: L.LightningModule, iteration: int, values: Mapping[str, float]
    ) -> None:
        self._steps[iteration] = trainer.global_step
        flag = self.rule.update(iteration, values)
        # Equal values on all ranks give equal flags; a rank that differed would hang in the action's collectives.
        if any_rank(flag is not None, pl_module.device) != (flag is not None):
            raise RuntimeError("Ranks disagree on a collapse: `emit_rollout` must be called on every rank.")
        self._pending = {
            "monitor/collapse/index": self.rule.index,
            "monitor/collapse/forecast": self.rule.forecast,
            "monitor/collapse/flagged": float(flag is not None),
        }
        if flag is not None:
            self._act(trainer, pl_module, flag)

    def _act(self, trainer: L.Trainer, pl_module: L.LightningModule, flag: Flag) -> None:
        stop, did = self._react(trainer, pl_module, flag)
        trainer.should_stop = trainer.should_stop or stop
        event = {"step": trainer.global_step, "action": self.action, "did": did, **flag.as_dict()}
        self.flags.append(event)
        rank_zero_warn(f"Collapse flagged at iteration {flag.iteration}: {flag.describe()}. {did}")
        append_to_run(trainer, FILENAME, [_finite(event)])

    def _react(self, trainer: L.Trainer, pl_module: L.LightningModule, flag: Flag) -> tuple[bool, str]:
        """Take the action; whether training must stop, and what was done, for people."""
        if self.action == "stop":
            return True, "Stopped training."
        if self.action == "raise_kl":
            return False, self._raise_kl(pl_module)
        if self.action == "rollback":
            return self._plan_rollback(trainer, flag)
        return False, "Only warned."

    def _raise_kl(self, pl_module: L.LightningModule) -> str:
        if self.kl_factor == 1:
            return ""
        controller: Any = pl_module.kl_controller
        before = controller.value
        controller.raise_by(self.kl_factor)
        return f"Raised kl_coef from {before:.4g} to {controller.value:.4g}."

    def _plan_rollback(self, trainer: L.Trainer, flag: Flag) -> tuple[bool, str]:
        spoiled = [(self._steps[e["since"]], e["step"]) for e in self.flags]
        found = checkpoint_before(trainer, self._steps[flag.since], folder=self.checkpoint_dir, spoiled=spoiled)
        if found is None:
            return True, f"No checkpoint from before iteration {flag.since} to roll back to. Stopped training."
        # Not now: the rest of this epoch would train the old weights on the new experience.
        self._rollback_to = found
        return False, f"Rolls back to {found.name} at the end of the epoch, kl_coef times {self.kl_factor:g}."

    def _flush(self, pl_module: L.LightningModule) -> None:
        if self._pending:
            pl_module.log_dict(self._pending, batch_size=1)
            self._pending = {}


def _finite(value: Any) -> Any:
    """``value`` with non-finite floats as None: JSON has none."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
