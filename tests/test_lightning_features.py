"""docs/lightning.md, line by line: every flag and callback of Lightning's through the command line."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch import callbacks as lightnings
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy

from lit_rlhf import PPOModule
from lit_rlhf.modules.lightning_features import refuse_flags
from tests.command_line import ended, ppo_config, refused, run, write_config
from tests.modules.tiny_ppo import make_data, make_ppo, make_trainer

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "lightning.md").read_text(encoding="utf-8")


def rows(title: str) -> list[tuple[str, Any, str]]:
    """Name, example and verdict of each line of a table."""
    text = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in text.splitlines()]
    cells = [line for line in lines if len(line) == 4 and line[2] in ("works", "refused", "idle")]
    return [(name, yaml.safe_load(example) if example else None, verdict) for name, example, verdict, _ in cells]


FLAGS, CALLBACKS = rows("Flags"), rows("Callbacks")


def config_of(world: Path, root: Path) -> dict[str, Any]:
    """One iteration of two updates with held-out prompts."""
    config = ppo_config(world, root)
    config["trainer"]["max_epochs"] = 1
    files = dict.fromkeys(("val", "test", "predict"), str(world / "prompts.jsonl"))
    config["data"]["init_args"] |= {**files, "eval_limit": 4}
    return config


def check(verdict: str, capsys: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    if verdict == "refused":

        def load(*_: Any) -> None:
            raise AssertionError("a model was loaded")

        monkeypatch.setattr(PPOModule, "build_policy", load)
        refused(capsys, *words)
        return
    found = ended(capsys, *words)
    assert found.code == 0, found.err


@pytest.mark.parametrize(("flag", "value", "verdict"), FLAGS, ids=[f"{flag}={value}" for flag, value, _ in FLAGS])
def test_flag(flag: str, value: Any, verdict: str, world: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    config = config_of(world, tmp_path / "run")
    if flag == "weights_only":
        config[flag] = value
    else:
        config["trainer"][flag] = str(tmp_path / value) if flag == "default_root_dir" else value
    verb = {"limit_test_batches": "test", "limit_predict_batches": "predict"}.get(flag, "fit")
    check(verdict, capsys, monkeypatch, verb, "--config", write_config(tmp_path / "c.yaml", config))


@pytest.mark.parametrize(("name", "arguments", "verdict"), CALLBACKS, ids=[name for name, *_ in CALLBACKS])
def test_callback(name: str, arguments: Any, verdict: str, world: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    config = config_of(world, tmp_path / "run")
    arguments = {k: str(tmp_path / v) if k == "dirpath" else v for k, v in (arguments or {}).items()}
    given = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": arguments}
    config["trainer"] |= {"callbacks": [given], "enable_progress_bar": True, "max_epochs": 2}
    check(verdict, capsys, monkeypatch, "fit", "--config", write_config(tmp_path / "c.yaml", config))


def test_the_page_has_every_flag_and_callback() -> None:
    flags = set(inspect.signature(L.Trainer).parameters) - {"model_registry"}  # of a service
    assert flags <= {flag for flag, *_ in FLAGS}
    bases = {"Callback", "Checkpoint", "ProgressBar", "BaseFinetuning", "BasePredictionWriter", "WeightAveraging"}
    bare = {"LambdaCallback", "ThroughputMonitor", "LitModelCheckpoint"}  # functions, which YAML has not, and a service
    known = {name for name in lightnings.__all__ if inspect.isclass(getattr(lightnings, name))}
    assert known - bases - bare <= {name for name, *_ in CALLBACKS} | {"SpikeDetection"}


def test_an_average_of_weights_is_what_is_exported(world: Path, tmp_path: Path) -> None:
    """Of the weights after each step, under optimization by hand too."""
    from safetensors.torch import load_file

    from lit_rlhf import ExportCallback

    class Steps(L.Callback):
        def __init__(self) -> None:
            self.weights: list[torch.Tensor] = []

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            self.weights.append(pl_module.policy.lm_head.weight.detach().clone())  # type: ignore[union-attr, operator]

    steps, average = Steps(), lightnings.EMAWeightAveraging(decay=0.5)
    trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[steps, average, ExportCallback()], limit_val_batches=0)
    trainer.fit(make_ppo(world), make_data(world))
    assert len(steps.weights) == 4
    wanted = steps.weights[0]
    for weight in steps.weights[1:]:
        wanted = 0.5 * wanted + 0.5 * weight
    found = load_file(tmp_path / "export" / "final" / "model.safetensors")["lm_head.weight"]
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, steps.weights[-1])


class Experiment:
    """What MLflow's and W&B's clients are asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("add_text", "add_histogram"):
            raise AttributeError(name)
        return lambda *arguments, **_: self.calls.append((name, arguments))


def test_mlflow_and_wandb_get_config_samples_and_histograms(world: Path, tmp_path: Path, monkeypatch) -> None:
    """By what they are asked; tests that need the packages are below."""
    import sys
    import types

    from lightning.pytorch.loggers.logger import DummyLogger

    class MLFlowLogger(DummyLogger):
        run_id = "r"
        experiment = Experiment()

    class WandbLogger(DummyLogger):
        experiment = Experiment()

        def log_text(self, **given: Any) -> None:
            self.experiment.log_table(given)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(Histogram=list))  # type: ignore[arg-type]
    from lit_rlhf import RewardDistributionMonitor, SampleLogger

    loggers = [MLFlowLogger(), WandbLogger()]
    callbacks = [SampleLogger(), RewardDistributionMonitor()]
    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=callbacks, logger=loggers)
    trainer.fit(make_ppo(world), make_data(world))
    called = [{name for name, _ in logger.experiment.calls} for logger in loggers]
    assert called == [{"log_text", "log_dict"}, {"log_table", "log"}]
    ((_, (given,)), *_) = [call for call in loggers[1].experiment.calls if call[0] == "log_table"]
    assert (given["key"], given["columns"]) == ("samples/random", ["step", "index", "text"])
    assert len(given["data"]) == 4
    files = [arguments[2] for name, arguments in loggers[0].experiment.calls if name == "log_dict"]
    assert files == ["rollout/score/step000000.json"]


def offline(world: Path, tmp_path: Path, name: str, arguments: dict[str, Any]) -> Path:
    config = config_of(world, tmp_path / "run")
    names = ("SampleLogger", "RewardDistributionMonitor")
    logger = {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": arguments}
    config["trainer"] |= {"logger": [logger], "callbacks": [{"class_path": each} for each in names]}
    run("fit", "--config", write_config(tmp_path / "c.yaml", config))
    return tmp_path / "run"


def test_wandb_offline(world: Path, tmp_path: Path, capsys) -> None:
    wandb = pytest.importorskip("wandb")
    (tmp_path / "w").mkdir()
    root = offline(world, tmp_path, "WandbLogger", {"save_dir": str(tmp_path / "w"), "offline": True, "project": "p"})
    wandb.finish()
    (log,) = (tmp_path / "w").glob("wandb/offline-run-*/*.wandb")
    content = log.read_bytes()
    for told in (b"model.sampling.max_response_length", b"rollout/score_histogram", b"samples/random", b"rollout/kl"):
        assert told in content
    assert ended(capsys, "report", str(root), "--out", str(tmp_path / "r.html")).code == 0


def test_mlflow_in_a_folder(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    import mlflow

    uri = f"sqlite:///{tmp_path / 'm.db'}"
    offline(world, tmp_path, "MLFlowLogger", {"tracking_uri": uri, "artifact_location": str(tmp_path / "artifacts")})
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs(["1"])
    assert found.data.params["model.sampling.max_response_length"] == "6"
    assert "rollout/kl" in found.data.metrics
    assert {item.path for item in client.list_artifacts(found.info.run_id)} >= {"samples", "rollout"}


def test_a_run_without_the_csv_logger_can_be_reported(world: Path, tmp_path: Path, capsys) -> None:
    config = config_of(world, tmp_path / "run")
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path / "tb")}}
    config["trainer"]["logger"] = logger
    run("fit", "--config", write_config(tmp_path / "c.yaml", config))
    assert ended(capsys, "report", str(tmp_path / "run"), "--out", str(tmp_path / "r.html")).code == 0
    (hparams,) = (tmp_path / "tb").rglob("hparams.yaml")
    assert yaml.safe_load(hparams.read_text())["model.sampling.max_response_length"] == 6


class MyFSDP(FSDPStrategy):
    pass


class FSDPLike(SingleDeviceStrategy):
    """Of somebody's own, and no FSDP."""


STRATEGIES: dict[str, tuple[Any, bool]] = {
    "class_path": ({"class_path": "FSDPStrategy"}, True),
    "dotted class_path": ({"class_path": "lightning.pytorch.strategies.FSDPStrategy"}, True),
    "a subclass": (lambda: MyFSDP.__new__(MyFSDP), True),
    "ZeRO-3": (lambda: DeepSpeedStrategy(stage=3), True),
    "ZeRO-2": (lambda: DeepSpeedStrategy(stage=2), False),
    "another's": (lambda: FSDPLike.__new__(FSDPLike), False),
    "DDP by class_path": ({"class_path": "lightning.pytorch.strategies.DDPStrategy"}, False),
    "ddp": ("ddp", False),
    "none": (None, False),
}


@pytest.mark.parametrize(("strategy", "refused"), STRATEGIES.values(), ids=STRATEGIES)
def test_strategies_that_shard_parameters_are_refused_by_whatever_name(strategy: Any, refused: bool) -> None:
    given = strategy() if callable(strategy) else strategy
    with pytest.raises(ValueError, match="is not supported: use `ddp`") if refused else nullcontext():
        refuse_flags({"strategy": given})
