"""`val/win_rate` during `fit`: measured by any judge, and watched by EarlyStopping and BestPolicy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping

from lit_rlhf.callbacks.best_policy import BestPolicy
from lit_rlhf.evaluation.answers import read_answers
from lit_rlhf.evaluation.comparison import Grouping, against_baseline
from lit_rlhf.evaluation.judges import RewardJudge, ScoreJudge
from lit_rlhf.evaluation.opponent import Opponent
from lit_rlhf.modules.prompt_evaluator import PromptEvaluator
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rollout.sampling import SamplingConfig
from tests.evaluation.made_up_answers import row
from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer, write_opponent, write_world

SCORE = ScoreJudge("score", tie_margin=0.01)


class Watch(L.Callback):
    """The win rate after every validation."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append(float(trainer.callback_metrics["val/win_rate"]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def before(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained policy's run, with its answers."""
    root = tmp_path_factory.mktemp("before")
    make_trainer(root).validate(make_ppo(world), make_data(world), verbose=False)
    return root


def test_every_validation_logs_what_its_saved_answers_say(world: Path, before: Path, tmp_path: Path) -> None:
    watch = Watch()
    module = make_ppo(world, opponent=Opponent(answers=str(before), judge=SCORE))
    make_trainer(tmp_path, callbacks=[watch], max_epochs=3, num_sanity_val_steps=1).fit(module, make_data(world))
    files = sorted((tmp_path / "evaluations").glob("val-*.jsonl"))
    assert len(files) == 3
    expected = [
        against_baseline("x", read_answers(f), read_answers(before), SCORE, grouping=Grouping()).win_rates["all"].rate
        for f in files
    ]
    assert watch.rates[-3:] == pytest.approx(expected)
    assert len(set(expected)) > 1
    assert len(files[0].read_text().splitlines()) == 4


def test_a_reward_judge_scores_every_validation_afresh(world: Path, before: Path, tmp_path: Path) -> None:
    """Its scores are those of the training reward, which the rows hold: the same rates, though places are equal."""
    rates = []
    for judge in (SCORE, RewardJudge(ModelReward(str(world / "reward")), tie_margin=0.01)):
        watch = Watch()
        module = make_ppo(world, opponent=Opponent(answers=str(before), judge=judge))
        make_trainer(tmp_path / judge.name, callbacks=[watch], max_epochs=2).fit(module, make_data(world))
        rates.append(watch.rates)
    assert rates[0] == pytest.approx(rates[1])


def test_early_stopping_and_best_policy_can_watch_it(world: Path, tmp_path: Path) -> None:
    path = write_opponent(world, gold=-1e9)  # whatever the policy says, it wins: the rate cannot improve
    stop = EarlyStopping("val/win_rate", mode="max", patience=1)
    best = BestPolicy(score_name="val/win_rate", kl_bound=1e9, dirpath=str(tmp_path / "best"))
    module = make_ppo(
        world,
        eval_rewards={"gold": ModelReward(str(world / "reward"))},
        opponent=Opponent(answers=str(path), judge=ScoreJudge("gold", tie_margin=0.0)),
    )
    trainer = make_trainer(tmp_path, callbacks=[stop, best], max_epochs=9, enable_checkpointing=True)
    trainer.fit(module, make_data(world))
    assert stop.best_score == best.best_model_score == 1.0
    assert trainer.current_epoch == 2
    assert list((tmp_path / "best").glob("best-*.ckpt"))


def test_an_opponent_without_the_prompts_or_the_scores_is_one_line(world: Path, tmp_path: Path) -> None:
    evaluator = PromptEvaluator(
        sampling=SamplingConfig(), opponent=Opponent(answers=str(write_opponent(world)), judge=SCORE)
    )
    evaluator.add([row(0, "x", prompt="else", tokens=1, logprob=0.0, ended=True, score=1.0)])
    with pytest.raises(ValueError, match=r"Prompt 0 of this run .* is another one in"):
        evaluator.finish(tmp_path, "val.jsonl")
    assert json.loads((tmp_path / "val.jsonl").read_text())["response"] == "x"  # what was answered is kept
    record = json.loads((world / "prompts.jsonl").read_text().splitlines()[0])
    evaluator.add([{**row(0, "x", tokens=1, logprob=0.0, ended=True, score=1.0), "record": record}])
    with pytest.raises(ValueError, match=r"opponent.jsonl, row 1: `score` \(score\) is not among its numbers"):
        evaluator.finish(tmp_path, "val.jsonl")


def test_an_opponent_may_have_answered_more_prompts_than_were_validated(world: Path) -> None:
    """`--trainer.limit_val_batches` and `eval_limit` validate on some of the prompts; missing answers are refused."""
    path = write_opponent(world)
    saved = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    own = [{**row, "gold": 1.0 - 2.0 * (row["row"] == 3)} for row in saved[:4]]
    opponent = Opponent(answers=str(path), judge=ScoreJudge("gold", tie_margin=0.0))
    assert opponent.measure(own) == {"win_rate": 0.75, "tie_rate": 0.0}
    with pytest.raises(ValueError, match="no response to 1 of the 5 prompts of this run, the first of them prompt x"):
        opponent.measure([*own, {**own[0], "row": "x"}])


def test_names_do_not_collide() -> None:
    with pytest.raises(ValueError, match="`eval_rewards` has a 'win_rate'"):
        PromptEvaluator(
            sampling=SamplingConfig(),
            rewards={"win_rate": ModelReward("x")},
            opponent=Opponent(answers="x", judge=SCORE),
        )
