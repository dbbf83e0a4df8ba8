"""`lit-rlhf fit|validate|test|predict`: a LightningCLI with this library's defaults and one-line errors."""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy

import lit_rlhf
from lit_rlhf.callbacks.best_policy import BestPolicy
from lit_rlhf.callbacks.export import ExportCallback
from lit_rlhf.callbacks.heartbeat import Heartbeat
from lit_rlhf.callbacks.hooks import writes_files
from lit_rlhf.callbacks.prediction_writer import JSONLWriter
from lit_rlhf.callbacks.progress_bar import RLHFProgressBar
from lit_rlhf.callbacks.run_checkpoint import RunCheckpoint
from lit_rlhf.callbacks.stop_on_signal import StopOnSignal
from lit_rlhf.commands.csv_log import RunCSVLogger
from lit_rlhf.commands.parsing import TOP_LEVEL, OneLineParser, check_groups, modules_named_in_yaml, readable
from lit_rlhf.commands.trainer import MachineTrainer
from lit_rlhf.files import write_text
from lit_rlhf.modules.base import BaseModule
from lit_rlhf.modules.lightning_features import check_trainer, refuse_flags
from lit_rlhf.strategies.checkpoint_io import AtomicCheckpointIO, latest_checkpoint
from lit_rlhf.strategies.register import register_strategies
from lit_rlhf.user_errors import PACKAGE, UserError, message_for_user

_OTHER_WARNINGS: Callable[..., str] = warnings.formatwarning  # Lightning's
_PLAIN = (bool, int, float, str, type(None))


class RunConfig(SaveConfigCallback):
    """Saves the whole config as ``config.yaml``, and ``versions.json``, in the run directory, not in a logger's.

    It also says when a run that is resumed has nothing left to do.
    """

    _trained = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write once, on rank 0, when fitting."""
        if self.already_saved or stage != "fit":
            return
        if trainer.is_global_zero:
            text = self.parser.dump(self.config, skip_none=False)
            write_text(Path(trainer.default_root_dir) / "config.yaml", text)
            write_text(Path(trainer.default_root_dir) / "versions.json", json.dumps(versions(), indent=1) + "\n")
            for logger in trainer.loggers:
                logger.log_hyperparams(flat_config(self.config))
        self.already_saved = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """There is something left to train."""
        self._trained = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line instead of silence."""
        if not self._trained and trainer.is_global_zero:
            print(  # noqa: T201
                f"nothing left to train: the checkpoint is at epoch {trainer.current_epoch}, step "
                f"{trainer.global_step}; max_epochs is {trainer.max_epochs}, max_steps {trainer.max_steps}.",
                flush=True,
            )


def flat_config(config: Namespace) -> dict[str, Any]:
    """Options by dotted names, as loggers show hyper-parameters: what is no number, word or null becomes text."""
    plain = {key.replace(".init_args", ""): value for key, value in config.as_flat().__dict__.items()}
    return {key: value if isinstance(value, _PLAIN) else str(value) for key, value in plain.items()}


def versions() -> dict[str, str]:
    """Releases of what the numbers of a run depend on."""
    names = ("lit-rlhf", "torch", "lightning", "transformers", "tokenizers", "datasets", "deepspeed", "peft")
    found = {"python": platform.python_version(), "lit-rlhf": lit_rlhf.__version__}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


class RLHFCLI(LightningCLI):
    """Lightning's CLI with loggers, checkpoints, progress bar and export inside ``trainer.default_root_dir``."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """The parser with one-line errors."""
        parser = OneLineParser(**{"prog": "lit-rlhf", **kwargs})
        parser.add_argument("-c", "--config", action="config", help="YAML file; later ones override earlier ones")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Called for the parsers that configs are read by: they know what may stand at the top of one."""
        if isinstance(parser, OneLineParser):
            parser.top_level = TOP_LEVEL

    def _parse_ckpt_path(self) -> None:
        """Nothing: no options are read from checkpoints, and a checkpoint is read once."""

    def before_instantiate_classes(self) -> None:
        """Refuse what jsonargparse lets pass and then fails on in its own words.

        Raises:
            UserError: A group of options is a number or a list.
        """
        for section in ("model", "data"):
            chosen = self._get(self.config, section) or {}
            check_groups(section, chosen.get("class_path"), chosen.get("init_args") or {})

    def instantiate_classes(self) -> None:
        """As Lightning's, with errors of one line.

        Raises:
            UserError: jsonargparse cannot make a class of what is given.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            own = message_for_user(error) is not None or "Does not validate against" not in str(error)
            if own:
                raise
            raise UserError(readable(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Fill in what the config leaves open."""
        config = self._get(self.config_init, "trainer")
        if isinstance(self.model, BaseModule):
            refuse_flags(config)
        run = Path(config.get("default_root_dir") or f"runs/{self._run_name()}")
        kwargs["default_root_dir"] = str(run)
        if config.get("logger") in (None, True):
            kwargs["logger"] = [TensorBoardLogger(run, name="tensorboard"), RunCSVLogger(run)]
        trainer = super().instantiate_trainer(**kwargs)
        logs = trainer.loggers and writes_files(trainer)  # a trial run leaves no trace
        if logs and not any(isinstance(logger, CSVLogger) for logger in trainer.loggers):
            trainer.loggers = [*trainer.loggers, RunCSVLogger(run)]  # which `lit-rlhf report` reads
        self._fill_callbacks(trainer, run)
        if isinstance(self.model, BaseModule):
            check_trainer(trainer)
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
                raise UserError(
                    f"`ckpt_path: last`: there is no checkpoint in '{run}'. Leave it out to use the model as it is."
                )
            kwargs["ckpt_path"] = None if found is None else str(found)
        elif path is None and subcommand == "fit":
            refuse_used(self.trainer)
        elif path and _is_local_path(path) and not Path(path).exists():
            raise UserError(f"`ckpt_path`: there is no checkpoint at '{path}'.")
        return kwargs

    def _fill_callbacks(self, trainer: L.Trainer, run: Path) -> None:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(run / "checkpoints")


class BuiltCLI(RLHFCLI):
    """Module and data module as a run would have them; no trainer is made and nothing runs.

    Attributes:
        model: The LightningModule.
        datamodule: The LightningDataModule.
        trainer_config: The trainer's options, as the config has them.
    """

    def instantiate_classes(self) -> None:
        """All but what belongs to the trainer: a strategy or a logger may need a machine that this one is not."""
        self.config = self.config.clone()
        self.trainer_config = self.config[self.subcommand].pop("trainer")
        super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """None."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing."""


def refuse_used(trainer: L.Trainer) -> None:
    """Keep a fresh run out of the directory of an earlier one, whose files it would replace and mix with its own.

    Raises:
        UserError: There are checkpoints or an export in the run directory, and it is not a trial run.
    """
    run = Path(trainer.default_root_dir)
    if not writes_files(trainer) or (SLURMEnvironment.detect() and latest_checkpoint(run) is not None):
        return  # Lightning resumes a requeued job from its own checkpoint
    others = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    found = latest_checkpoint(run / "checkpoints", *(folder for folder in others if folder))
    if found is None and (run / "export" / "final").is_dir():
        found = run / "export" / "final"
    if found is not None:
        found, whole = found.resolve(), run.resolve()
        shown = found.relative_to(whole) if found.is_relative_to(whole) else found
        raise UserError(
            f"'{run}' holds an earlier run ({shown}), which a new one would overwrite. "
            "`--ckpt_path last` goes on with it, `--trainer.default_root_dir` names another folder; or delete it."
        )


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
        kinds.append((ProgressBar, lambda: RLHFProgressBar()))
    kinds += [(StopOnSignal, lambda: StopOnSignal()), (Heartbeat, lambda: Heartbeat())]
    for kind, make in kinds:
        # BestPolicy keeps the best by score; what a run resumes from is a checkpoint of its own.
        if not any(isinstance(callback, kind) and not isinstance(callback, BestPolicy) for callback in given):
            defaults.append(make())
    return defaults


def _brings_own_checkpoints(config: dict[str, Any]) -> bool:
    strategy = config.get("strategy")
    return isinstance(strategy, DeepSpeedStrategy) or (isinstance(strategy, str) and "deepspeed" in strategy)


def main(argv: Sequence[str]) -> None:
    """Run the subcommand (`fit`, `validate`, `test` or `predict`) that ``argv`` starts with.

    Raises:
        UserError: An option, a config or a path cannot be used.
        SystemExit: 2, where the parser finds what cannot be used.
    """
    command_line(argv)


def command_line(argv: Sequence[str], *, run: bool = True) -> RLHFCLI:
    """Parse ``argv``, make trainer, module and data, and run the subcommand.

    Args:
        argv: The command line; with ``run`` it starts with the subcommand, without it has none.
        run: Whether there is a subcommand to run. Without, ``.model``, ``.datamodule`` and ``.trainer`` are made and
            nothing is loaded.
    """
    return RLHFCLI(**_options(argv), seed_everything_default=0, run=run)


def build(argv: Sequence[str]) -> BuiltCLI:
    """Parse ``argv`` as a run would, make module and data alone, and seed nothing."""
    return BuiltCLI(**_options(argv), seed_everything_default=False)


def _options(argv: Sequence[str]) -> dict[str, Any]:
    quiet()
    register_strategies()
    modules_named_in_yaml()
    return {
        "model_class": L.LightningModule,
        "trainer_class": MachineTrainer,
        "datamodule_class": L.LightningDataModule,
        "subclass_mode_model": True,
        "subclass_mode_data": True,
        "auto_configure_optimizers": False,  # modules make their own; an option that does nothing is not offered
        "save_config_callback": RunConfig,
        "save_config_kwargs": {"overwrite": True},
        "trainer_defaults": {
            "log_every_n_steps": 1,
            "logger": True,
            "use_distributed_sampler": False,
            "enable_model_summary": False,
        },
        "parser_kwargs": {"default_env": True, "env_prefix": "LIT_RLHF"},
        "args": list(argv),
    }


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
    warnings.formatwarning = one_line_warning
    if "SLURM_JOB_ID" not in os.environ:  # installed, not used
        warnings.filterwarnings("ignore", ".*`srun` command is available.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    threading.excepthook = _thread_error
    import transformers

    transformers.utils.logging.disable_progress_bar()


def one_line_warning(message: Warning | str, category: type[Warning], filename: str, *args: Any, **kwargs: Any) -> str:
    """How a warning is shown: this library's on one line, without its source; others as before."""
    if not Path(filename).resolve().is_relative_to(PACKAGE):
        return _OTHER_WARNINGS(message, category, filename, *args, **kwargs)
    return f"lit-rlhf warns: {' '.join(str(message).split())}\n"


def _thread_error(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread and raises its error again in the main one, where it is told in one line."""
    if failed.exc_value is None or message_for_user(failed.exc_value) is None:
        threading.__excepthook__(failed)
