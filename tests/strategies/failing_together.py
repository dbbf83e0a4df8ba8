"""What goes wrong on one rank alone, in every place where the others would wait for it; see the test of that name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lit_rlhf.strategies  # noqa: F401  (makes their names known)
from lit_rlhf import PreferenceDataModule, RewardModelModule, SFTModule
from lit_rlhf.callbacks import ExportCallback
from lit_rlhf.callbacks.prediction_writer import JSONLWriter
from lit_rlhf.distributed import rank
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.rollout.engine import GenerationRequest
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import RewardRequest, Rollout
from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer


class BrokenEngine(TransformersEngine):
    """Cannot generate on rank 1."""

    def generate(self, request: GenerationRequest) -> Rollout:
        fail(1, "no tokens")
        return super().generate(request)


class BrokenLoading(PPOModule):
    """Has no files on rank 1."""

    def load_models(self) -> None:
        fail(1, "no files")
        super().load_models()


class BrokenRequest(PPOModule):
    """Breaks what the reward is asked on rank 1, in evaluation."""

    def reward_request(self, rollout: Rollout) -> RewardRequest:
        fail(1, "no service")
        return super().reward_request(rollout)


class BrokenExport(PPOModule):
    """Has a full disk on rank 0."""

    def export(self, path: str | Path) -> None:
        fail(0, "no space")


class BrokenReport(RewardModelModule):
    """Cannot score the report's probes, which rank 0 does."""

    def response_scorer(self) -> Any:
        fail(0, "no scorer")


def fail(where: int, what: str) -> None:
    if rank() == where:
        raise OSError(what)


def trainer(folder: Path, **options: Any) -> Any:
    return make_trainer(folder, devices=2, strategy="ddp", max_epochs=1, **options)


def cases(world: Path, folder: Path) -> dict[str, Callable[[], Any]]:
    """By name; rank 0 has one batch more than rank 1."""
    prompts = str(world / "prompts.jsonl")
    data = {"eval_batch_size": 2, "eval_limit": 5, "predict": prompts, "test": prompts}
    file = folder / "pairs.jsonl"
    rows = [{"prompt": "abc", "chosen": "gh" + "a" * i, "rejected": "b"} for i in range(8)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = PreferenceDataModule(test=str(file), batch_size=4, max_length=32)
    writer = JSONLWriter(folder / "predictions.jsonl")
    quiet = {"limit_val_batches": 0}
    return {
        "load": lambda: trainer(folder).fit(make_ppo(world, BrokenLoading), make_data(world)),
        "collect": lambda: trainer(folder, **quiet).fit(make_ppo(world, engine=BrokenEngine()), make_data(world)),
        "validate": lambda: trainer(folder).validate(make_ppo(world, BrokenRequest), make_data(world, **data)),
        "test": lambda: trainer(folder).test(make_ppo(world, engine=BrokenEngine()), make_data(world, **data)),
        "predict": lambda: trainer(folder, callbacks=[writer]).predict(
            make_ppo(world, engine=BrokenEngine()), make_data(world, **data), return_predictions=False
        ),
        "predict, SFT": lambda: trainer(folder, callbacks=[writer]).predict(
            SFTModule(str(world / "policy"), engine=BrokenEngine()), make_data(world, **data), return_predictions=False
        ),
        "export": lambda: trainer(folder, callbacks=[ExportCallback()], **quiet).fit(
            make_ppo(world, BrokenExport), make_data(world)
        ),
        "report": lambda: trainer(folder).test(
            BrokenReport(str(world / "reward"), head="load", lm_coef=0.0), pairs, verbose=False
        ),
    }


def errors(world: Path, folder: Path) -> dict[str, str]:
    """The error of each case on this rank."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, run in cases(world, folder).items():
        try:
            run()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found
