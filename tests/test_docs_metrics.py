"""docs/metrics.md names what is logged, and the formulas there give the numbers that are logged."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lit_rlhf.callbacks import (
    CollapseDetector,
    CriticWarmup,
    KLMonitor,
    PerplexityMonitor,
    RepetitionMonitor,
    ResponseLengthMonitor,
    RewardDistributionMonitor,
)
from lit_rlhf.config import ScheduleConfig
from lit_rlhf.evaluation.judges import ScoreJudge
from lit_rlhf.evaluation.opponent import Opponent
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import CriticConfig, LossConfig, PTXConfig
from lit_rlhf.ppo.kl_controller import AdaptiveKL
from lit_rlhf.rewards.base import Reward
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import RewardOutput
from tests.callbacks.stand_in import made_up
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer, write_opponent, write_world

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
MONITORS = (KLMonitor, PerplexityMonitor, ResponseLengthMonitor, RepetitionMonitor)
STEPS = 4  # two minibatches, two passes


def documented(section: str) -> set[str]:
    """Names in the first column of the tables under a second-level heading."""
    (text,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", PAGE, flags=re.M | re.S)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def matches(name: str, known: set[str]) -> bool:
    return any(re.fullmatch(re.sub(r"<\w+>", r"\\w+", re.escape(k)), name) for k in known)


class Watch(Recorder):
    """The minibatches too, and every name."""

    def __init__(self) -> None:
        super().__init__()
        self.minibatches: list[Any] = []
        self.names: set[str] = set()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        self.minibatches.append(batch.content)

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.names = set(trainer.callback_metrics)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


class NaNInTheEnd(PPOModule):
    """A critic that says NaN in the third iteration."""

    def score_rollout(self, rollout: Any, micro_batches: Any) -> Any:
        scored, entropy = super().score_rollout(rollout, micro_batches)
        if self.iteration == 2:
            scored.old_values[0, 0] = math.nan
        return scored, entropy


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Watch:
    """Three iterations with every term of the loss, every monitor, a target KL that ends two of them, and a fault."""
    watch = Watch()
    module = make_ppo(
        world,
        kind=NaNInTheEnd,
        on_non_finite="skip",
        engine=TransformersEngine(sampler_logprobs=True),
        loss=LossConfig(
            entropy_coef=0.01, target_kl=1e-9, whiten_advantages=True, advantage_clip=0.5, sampler_correction="token"
        ),
        schedule=ScheduleConfig(kind="constant", warmup=4, min_ratio=0.1),
        eval_rewards={"gold": ModelReward(str(world / "reward"))},
        opponent=Opponent(answers=str(write_opponent(world)), judge=ScoreJudge("gold", tie_margin=0.0)),
    )
    monitors = [monitor() for monitor in MONITORS]
    others = [RewardDistributionMonitor(), CollapseDetector(), CriticWarmup(iterations=0)]
    trainer = make_trainer(tmp_path_factory.mktemp("run"), callbacks=[*monitors, *others, watch], max_epochs=3)
    ptx = PTXConfig(files=[str(world / "texts.jsonl")])
    trainer.fit(module, make_data(world, ppo_epochs=2, ptx=ptx))
    return watch


def test_every_logged_name_is_documented_and_every_documented_one_logged(run: Watch) -> None:
    ppo, callbacks = documented("PPOModule"), documented("Callbacks")
    assert not [name for name in run.names if not matches(name, ppo | callbacks)]
    assert not [name for name in ppo | callbacks if not any(matches(logged, {name}) for logged in run.names)]


def test_every_metric_says_what_is_healthy_and_what_alarming() -> None:
    judged = documented("Healthy and alarming")
    defined = {
        name for part in ("PPOModule", "SFTModule", "RewardModelModule", "Callbacks") for name in documented(part)
    }
    assert judged == defined


def test_what_is_alarming_is_shown_on_a_page() -> None:
    shown = (ROOT / "docs" / "reading-a-run.md").read_text(encoding="utf-8")
    headings = {re.sub(r"[^a-z -]", "", x.lower()).replace(" ", "-") for x in re.findall(r"^## (.*)$", shown, re.M)}
    linked = set(re.findall(r"reading-a-run\.md#([\w-]+)", PAGE))
    assert len(linked) == 7
    assert linked <= headings


@pytest.mark.parametrize(("file", "section"), [("sft", "SFTModule"), ("reward_model", "RewardModelModule")])
def test_names_in_the_source_of_the_other_modules_are_documented(file: str, section: str) -> None:
    source = (ROOT / "lit_rlhf" / "modules" / f"{file}.py").read_text(encoding="utf-8")
    names = set(re.findall(r'"((?:loss|train|update)/\w+)"', source))
    names |= {f"val/{name}" for name in re.findall(r'f"\{stage\}/(\w+)"', source)}
    assert len(names) >= 5
    assert not names - documented(section)


def test_names_of_each_monitor_in_somebody_elses_trainer_are_documented() -> None:
    listed = dict(re.findall(r"^\* `(\w+)`: ((?:`rollout/[^`]+`[,\s]*)+)", PAGE, flags=re.M))
    for monitor in (*MONITORS, RewardDistributionMonitor):
        names = set(re.findall(r"`([^`]+)`", listed.pop(monitor.__name__)))
        measured = monitor().measure(made_up())
        assert all(matches(name, names) for name in measured), monitor
        assert all(any(matches(logged, {name}) for logged in measured) for name in names), monitor
    assert not listed


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def std(values: list[float]) -> float:
    return math.sqrt(mean([(x - mean(values)) ** 2 for x in values]))


def tokens(column: torch.Tensor, mask: torch.Tensor) -> list[float]:
    return column[mask].double().tolist()


def test_rollout_metrics_term_by_term(run: Watch) -> None:
    for number, experience in enumerate(run.experiences):
        logged = run.metrics[number * STEPS]
        mask = experience.response_mask
        lp, ref = tokens(experience.old_logprobs, mask), tokens(experience.ref_logprobs, mask)
        d = [a - b for a, b in zip(lp, ref, strict=True)]
        scores = experience.scores.double().tolist()
        lengths = [float(n) for n in mask.sum(1)]
        so_far = [s for e in run.experiences[: number + 1] for s in e.scores.double().tolist()]
        sample_std = std(so_far) * math.sqrt(len(so_far) / (len(so_far) - 1))
        rewards = experience.rewards.masked_fill(~mask, 0.0).double().sum(1).tolist()
        expected = {
            "iteration": number,
            "rollout/score": mean(scores),
            "rollout/score_std": std(scores),
            "rollout/moments_mean": mean(so_far),
            "rollout/moments_std": sample_std,
            "rollout/score_normalized": mean([(s - mean(so_far)) / sample_std for s in scores]),
            "rollout/reward": mean(tokens(experience.rewards, mask)),
            "rollout/reward_total": mean(rewards),
            "rollout/kl": mean(d),
            "rollout/kl_k3": mean([math.exp(-x) - 1 + x for x in d]),
            "rollout/kl_sequence": sum(d) / len(scores),
            "rollout/perplexity": math.exp(-mean(lp)),
            "rollout/ref_perplexity": math.exp(-mean(ref)),
            "rollout/response_length": mean(lengths),
            "rollout/eos_rate": mean([float(x) for x in experience.ended]),
            "rollout/cut_rate": mean([float(not x) for x in experience.ended]),
            "rollout/tokens": sum(lengths),
            "rollout/response_length_p90": float(torch.tensor(lengths).quantile(0.9)),
        }
        for name, column in (("value", "old_values"), ("return", "returns"), ("advantage", "advantages")):
            values = tokens(getattr(experience, column), mask)
            expected |= {f"rollout/{name}": mean(values), f"rollout/{name}_std": std(values)}
        for name, value in expected.items():
            assert logged[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_first_update_term_by_term(run: Watch) -> None:
    logged, experience = run.metrics[0], run.minibatches[0].experience
    mask = experience.response_mask
    raw = tokens(experience.advantages, mask)
    seen = [max(-0.5, min(0.5, (a - mean(raw)) / std(raw))) for a in raw]
    returns, values = tokens(experience.returns, mask), tokens(experience.old_values, mask)
    errors = [r - v for r, v in zip(returns, values, strict=True)]
    expected = {
        "update/ratio": 1.0,
        "update/ratio_drift": 0.0,
        "update/approx_kl": 0.0,
        "update/clip_fraction": 0.0,
        "update/value_clip_fraction": 0.0,
        "update/advantage": mean(seen),
        "update/advantage_std": std(seen),
        "loss/policy": -mean(seen),
        "loss/value": 0.5 * mean([e * e for e in errors]),
        "update/explained_variance": 1 - std(errors) ** 2 / std(returns) ** 2,
        "loss/entropy": -0.01 * logged["update/entropy"],
    }
    for name, value in expected.items():
        assert logged[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert 0 < logged["update/entropy"] < math.log(20)
    assert logged["update/grad_norm"] > 0


def test_learning_rate_is_that_of_the_step(run: Watch) -> None:
    rates = [row["lr/policy"] for row in run.metrics[:2]]
    assert rates == pytest.approx([0.25e-3, 0.5e-3])


def test_updates_after_target_kl_are_counted(run: Watch) -> None:
    assert "update/early_stop" not in run.metrics[1]
    assert [row["update/early_stop"] for row in run.metrics[2:4]] == [1, 2]
    assert not any("update/skipped" in row for row in run.metrics[:8]), "ending early is no fault"
    assert run.metrics[-1]["update/skipped"] == 4


class SecondIsBad(Reward):
    """NaN in the second iteration."""

    calls = 0

    def score(self, request: Any) -> RewardOutput:
        self.calls += 1
        scores = torch.arange(len(request.prompts)).float() + 1
        return RewardOutput(scores=scores * math.nan if self.calls == 2 else scores)


def test_a_skipped_iteration_teaches_nothing_and_logs_its_lengths(world: Path, tmp_path: Path) -> None:
    module = make_ppo(
        world,
        reward=SecondIsBad(),
        critic=CriticConfig(init="policy"),
        on_non_finite="skip",
        kl_controller=AdaptiveKL(coef=0.1, target=1e-3, horizon=64),
    )
    heard: list[int] = []
    logged: list[dict[str, float]] = []

    class Look(L.Callback):
        def on_rollout_end(self, trainer: L.Trainer, pl_module: Any, experience: Any) -> None:
            heard.append(pl_module.iteration)

        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            logged.append(pl_module.rollout_metrics)

    trainer = make_trainer(tmp_path, callbacks=[Look()], max_epochs=3)
    trainer.fit(module, make_data(world, val=None))
    assert (module.moments.count, module.moments.mean) == (32, 8.5)
    assert module.skipped_updates == 2
    assert heard == [0, 2]
    first, second, third = logged[::2]
    assert {"rollout/score", "rollout/kl", "rollout/return"} <= first.keys() == third.keys()
    rollout = {name for name in second if name.startswith("rollout/")}
    assert rollout - {"rollout/moments_mean", "rollout/moments_std"} == {
        *("rollout/response_length", "rollout/eos_rate", "rollout/cut_rate", "rollout/tokens")
    }
    assert second["kl_coef"] == third["kl_coef"], "the KL controller learned from a skipped iteration"
    assert first["kl_coef"] != second["kl_coef"]
