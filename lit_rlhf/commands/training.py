"""`lit-rlhf fit|validate|test|predict`: a LightningCLI with this library's defaults and one-line errors."""

from __future__ import annotations

import difflib
import inspect
import logging
import pkgutil
import re
import warnings
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy

from lit_rlhf.callbacks.best_policy import BestPolicy
from lit_rlhf.callbacks.export import ExportCallback
from lit_rlhf.callbacks.prediction_writer import JSONLWriter
from lit_rlhf.callbacks.progress_bar import RLHFProgressBar
from lit_rlhf.callbacks.run_checkpoint import RunCheckpoint
from lit_rlhf.callbacks.stop_on_signal import StopOnSignal
from lit_rlhf.strategies.checkpoint_io import AtomicCheckpointIO, latest_checkpoint
from lit_rlhf.strategies.register import register_strategies
from lit_rlhf.user_errors import fail

NAMED_IN_YAML = (
    "lit_rlhf.modules",
    "lit_rlhf.datamodules",
    "lit_rlhf.rewards",
    "lit_rlhf.callbacks",
    "lit_rlhf.strategies",
    "lit_rlhf.rollout",
    "lit_rlhf.ppo",
)
"""Imported first, so that YAML can say `class_path: PPOModule` without the module path."""


class OneLineParser(LightningArgumentParser):
    """jsonargparse without the forty lines of usage around an error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the error's own line and, for a misspelt key, what is allowed."""
        fail(readable(message))
        raise AssertionError  # pragma: no cover


def readable(message: str) -> str:
    """The innermost cause of a jsonargparse message on one line, with a suggestion for a misspelt key."""
    text = " ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -")).rstrip(".")
    found = _UNKNOWN_KEY.search(text)
    if found is None:
        return text
    parts = next(group for group in found.groups() if group).split(".")
    for part in reversed(parts):  # the last part may be right and the one before it misspelt
        near = [name for name in difflib.get_close_matches(part, known_keys(), n=3) if name != part]
        if near and part not in known_keys():
            return f"{text}. Did you mean: {', '.join(near)}?"
    return f"{text}. `lit-rlhf fit --print_config` with your config shows every key that is allowed."


_UNKNOWN_KEY = re.compile(
    r"(?:Option|option|Key) ['\"]([\w.]+)['\"] is not (?:accepted|expected)"
    r"|does not accept .*?option '([\w.]+)'"
    r"|[Uu]nrecognized arguments: --([\w.]+)"
)


@cache
def known_keys() -> list[str]:
    """Every key that a config may hold: of the trainer, and of this library's modules, data modules and groups."""
    known = set(TOP_LEVEL) | set(inspect.signature(L.Trainer).parameters)
    for name in NAMED_IN_YAML:
        for found in pkgutil.iter_modules(import_module(name).__path__):
            module = import_module(f"{name}.{found.name}")
            classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
            for kind in classes:
                known |= set(inspect.signature(kind.__init__).parameters)
    return sorted(known - {"self", "args", "kwargs"})


TOP_LEVEL: tuple[str, ...] = (
    *("trainer", "model", "data", "seed_everything", "ckpt_path", "optimizer", "lr_scheduler", "weights_only"),
    *("verbose", "return_predictions"),
)


def check_top_level(args: list[str]) -> None:
    """Refuse unknown top-level keys of config files; jsonargparse lets one with an empty mapping pass."""
    words = [word for arg in args for word in arg.split("=", 1)]
    for flag, path in pairwise(words):
        if flag not in ("-c", "--config") or not Path(path).is_file():
            continue
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            fail(f"{path} is not YAML: {error}")
        for key in content if isinstance(content, dict) else []:
            if key not in TOP_LEVEL:
                near = difflib.get_close_matches(str(key), TOP_LEVEL, n=1) or TOP_LEVEL
                fail(f"{path}: Key '{key}' is not accepted. Did you mean: {', '.join(near)}?")


class RunConfig(SaveConfigCallback):
    """Saves the whole config (and versions) as ``config.yaml`` in the run directory, not in a logger's."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write once, on rank 0, when fitting."""
        if self.already_saved or stage != "fit":
            return
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(
                self.config, folder / "config.yaml", skip_none=False, overwrite=True, multifile=self.multifile
            )
        self.already_saved = True


class RLHFCLI(LightningCLI):
    """Lightning's CLI with loggers, checkpoints, progress bar and export inside ``trainer.default_root_dir``."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """The parser with one-line errors."""
        parser = OneLineParser(**kwargs)
        parser.add_argument("-c", "--config", action="config", help="YAML file; later ones override earlier ones")
        return parser

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Fill in what the config leaves open."""
        config = self._get(self.config_init, "trainer")
        run = Path(config.get("default_root_dir") or f"runs/{self._run_name()}")
        kwargs["default_root_dir"] = str(run)
        if config.get("logger") in (None, True):
            kwargs["logger"] = [TensorBoardLogger(run, name="tensorboard"), CSVLogger(run, name="csv")]
        trainer = super().instantiate_trainer(**kwargs)
        self._fill_callbacks(trainer, run)
        return trainer

    def _run_name(self) -> str:
        return type(self.model).__name__.removesuffix("Module").lower()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> L.Trainer:
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        run = Path(config["default_root_dir"])
        config["callbacks"] = [*given, *default_callbacks(run, given, config)]
        if not _brings_own_checkpoints(config):
            plugins = config.get("plugins") or []
            plugins = plugins if isinstance(plugins, list) else [plugins]
            config["plugins"] = [*plugins, AtomicCheckpointIO()]
        return super()._instantiate_trainer(config, callbacks)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """`last` is the newest whole checkpoint of the run; a kill may have left no `last.ckpt`, or half a new one."""
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        path = kwargs.get("ckpt_path")
        if path == "last":
            run = Path(self.trainer.default_root_dir)
            found = latest_checkpoint(run / "checkpoints", run)  # SLURM's own checkpoint lies in the run directory
            if found is None and subcommand != "fit":
                fail(f"`ckpt_path: last`: there is no checkpoint in '{run}'. Leave it out to use the model as it is.")
            kwargs["ckpt_path"] = None if found is None else str(found)
        elif path and _is_local_path(path) and not Path(path).exists():
            fail(f"`ckpt_path`: there is no checkpoint at '{path}'.")
        return kwargs

    def _fill_callbacks(self, trainer: L.Trainer, run: Path) -> None:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(run / "checkpoints")


def _is_local_path(path: str) -> bool:
    """Whether a ``ckpt_path`` is neither a URL nor one of Lightning's names."""
    return "://" not in path and path not in ("best", "hpc") and not path.startswith("registry")


def default_callbacks(run: Path, given: list[Callback], config: dict[str, Any]) -> list[Callback]:
    """What every run gets unless the config brings one of the same kind or switches it off."""
    defaults: list[Callback] = []
    kinds: list[tuple[type[Callback], Any]] = [
        (ExportCallback, lambda: ExportCallback()),
        (JSONLWriter, lambda: JSONLWriter(run / "predictions.jsonl")),
    ]
    if config.get("enable_checkpointing") is not False and not config.get("fast_dev_run"):
        kinds.insert(0, (ModelCheckpoint, lambda: RunCheckpoint(str(run / "checkpoints"))))
    if config.get("enable_progress_bar") is not False:
        kinds.append((RLHFProgressBar, lambda: RLHFProgressBar()))
    kinds.append((StopOnSignal, lambda: StopOnSignal()))
    for kind, make in kinds:
        # BestPolicy keeps the best by score; what a run resumes from is a checkpoint of its own.
        if not any(isinstance(callback, kind) and not isinstance(callback, BestPolicy) for callback in given):
            defaults.append(make())
    return defaults


def _brings_own_checkpoints(config: dict[str, Any]) -> bool:
    strategy = config.get("strategy")
    return isinstance(strategy, DeepSpeedStrategy) or (isinstance(strategy, str) and "deepspeed" in strategy)


def run(args: list[str]) -> RLHFCLI:
    """Parse ``args`` and run the subcommand they start with."""
    quiet()
    register_strategies()
    for name in NAMED_IN_YAML:
        package = import_module(name)
        for found in pkgutil.iter_modules(package.__path__):
            import_module(f"{name}.{found.name}")
    check_top_level(args)
    return RLHFCLI(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=RunConfig,
        save_config_kwargs={"overwrite": True},
        trainer_defaults={
            "log_every_n_steps": 1,
            "logger": True,
            "use_distributed_sampler": False,
            "enable_model_summary": False,
        },
        seed_everything_default=0,
        parser_kwargs={"default_env": True, "env_prefix": "LIT_RLHF"},
        args=args,
    )


def quiet() -> None:
    """Silence what Lightning and torch say of things that are so by design here."""
    for text in (
        ".*does not have many workers.*",
        ".*LeafSpec.*is deprecated.*",
        ".*no pre-optimization state was saved.*",
        r".*Found .* module\(s\) in eval mode.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*LightningCLI's args parameter is intended.*",
    ):
        warnings.filterwarnings("ignore", text)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    import transformers

    transformers.utils.logging.disable_progress_bar()


__all__ = ["RLHFCLI", "run"]
