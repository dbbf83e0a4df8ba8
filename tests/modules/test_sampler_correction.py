"""A sampler that is off the policy: what is logged of it, and how the loss makes up for it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import LossConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import Rollout
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo, make_trainer, same, weights, write_world

CAP = 1.2


class Off(TransformersEngine):
    """Says log-probabilities that are off by what depends on the token; no entropies, so that the policy is asked."""

    def __init__(self, scale: float) -> None:
        super().__init__(sampler_logprobs=True)
        self.scale = scale

    def generate(self, request: Any) -> Rollout:
        rollout = super().generate(request)
        tokens = rollout.input_ids[:, rollout.prompt_length :]
        shift = torch.where(rollout.response_mask, self.scale * (tokens % 5 - 2).float(), 0.0)
        return replace(rollout, sampler_logprobs=rollout.sampler_logprobs + shift, sampler_entropies=None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


class Seen(PPOModule):
    """Keeps what the loss answered for each micro-batch, before any weight."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kept: list[tuple[torch.Tensor, Any]] = []

    def policy_token_loss(self, *args: Any) -> Any:
        loss, clipped = super().policy_token_loss(*args)
        self.kept.append((loss.detach(), args[-1]))
        return loss, clipped


class Agrees(PPOModule):
    """Its sampler says the scored log-probabilities, bit for bit."""

    def score_rollout(self, *args: Any) -> Any:
        scored, entropy = super().score_rollout(*args)
        return replace(scored, sampler_logprobs=scored.old_logprobs.clone()), entropy


def fitted(world: Path, root: Path, kind: type[PPOModule], scale: float, level: Any) -> tuple[Recorder, Any]:
    recorder, loss = Recorder(), LossConfig(sampler_correction=level, sampler_cap=CAP)
    module = make_ppo(world, kind, engine=Off(scale), loss=loss)
    make_trainer(root, callbacks=[recorder], max_epochs=1).fit(module, make_data(world))
    return recorder, module


def differences(columns: Any, row: int) -> list[float]:
    """log-probability of the policy less that of the sampler, of each token of a row."""
    return (columns.old_logprobs - columns.sampler_logprobs)[row][columns.response_mask[row]].tolist()


@pytest.mark.parametrize("level", [None, "token", "sequence"])
def test_metrics_and_loss_term_by_term(world, tmp_path, level) -> None:
    recorder, module = fitted(world, tmp_path, Seen, 0.1, level)
    experience, logged = recorder.experiences[0], recorder.metrics[0]
    rows = [differences(experience, row) for row in range(len(experience))]
    gaps, ratios = [abs(x) for d in rows for x in d], [math.exp(sum(d)) for d in rows]
    assert logged["rollout/sampler_gap"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-5)
    assert logged["rollout/sampler_gap_max"] == pytest.approx(max(gaps), rel=1e-5)
    ess = sum(ratios) ** 2 / (len(ratios) * sum(x * x for x in ratios))
    assert logged["rollout/sampler_ess"] == pytest.approx(ess, rel=1e-5)
    assert ess < 0.99
    # The first update: micro-batches of the loss until the minibatch's eight rows are full.
    total, drawn, answered, capped = 0.0, [], 0, False
    for loss, taken in module.kept:
        if answered == 8:
            break
        answered += len(taken)
        for row in range(len(taken)):
            d = differences(taken, row)
            exponents = {None: [0.0] * len(d), "token": d, "sequence": [sum(d)] * len(d)}[level]
            used = [min(math.exp(x), CAP) for x in exponents]
            total += sum(a * b for a, b in zip(loss[row][taken.response_mask[row]].tolist(), used, strict=True))
            drawn, capped = drawn + used, capped or CAP in used
    assert capped == (level is not None)
    assert logged["loss/policy"] == pytest.approx(total / len(drawn), rel=1e-4, abs=1e-6)
    if level is None:
        assert "update/sampler_weight" not in logged
    else:
        assert logged["update/sampler_weight"] == pytest.approx(sum(drawn) / len(drawn), rel=1e-5)


def test_where_the_sampler_is_the_policy_a_correction_changes_not_a_bit(world, tmp_path) -> None:
    states = [
        weights(fitted(world, tmp_path / str(level), Agrees, 0.1, level)[1]) for level in (None, "token", "sequence")
    ]
    assert same(states[0], states[1])
    assert same(states[0], states[2])


def test_an_engine_that_says_nothing_is_not_measured(world, tmp_path) -> None:
    recorder = Recorder()
    trainer = make_trainer(tmp_path, callbacks=[recorder], max_epochs=1)
    trainer.fit(make_ppo(world), make_data(world))
    assert not [name for name in recorder.metrics[0] if "sampler" in name]
