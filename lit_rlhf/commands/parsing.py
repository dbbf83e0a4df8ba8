"""How `fit`, `validate`, `test` and `predict` read options and configs: Lightning's parser with one-line errors."""

from __future__ import annotations

import inspect
import pkgutil
import re
from functools import cache
from importlib import import_module
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lit_rlhf.commands.arguments import did_you_mean
from lit_rlhf.commands.config_files import read_config
from lit_rlhf.user_errors import UserError, fail

NAMED_IN_YAML = (
    "lit_rlhf.modules",
    "lit_rlhf.datamodules",
    "lit_rlhf.rewards",
    "lit_rlhf.callbacks",
    "lit_rlhf.strategies",
    "lit_rlhf.rollout",
    "lit_rlhf.ppo",
    "lit_rlhf.evaluation.judges",
)
"""Rooms whose classes YAML can name without the module path: `class_path: PPOModule`."""

TOP_LEVEL: tuple[str, ...] = (
    *("trainer", "model", "data", "seed_everything", "ckpt_path", "weights_only"),
    *("verbose", "return_predictions"),
)
"""Keys at the top of a config, as Lightning's CLI has them."""


class OneLineParser(LightningArgumentParser):
    """jsonargparse without shortened options, without repeated keys, and without the forty lines around an error.

    The parser makes others of its class for groups and classes below an option; the defaults here reach them all.

    Attributes:
        top_level: Keys that a config file may hold at its top; None for any.
    """

    top_level: tuple[str, ...] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_path(self, path: str | PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config file after a look at what jsonargparse would let pass.

        Raises:
            UserError: A key stands twice, or one at the top is unknown (jsonargparse takes it with an empty mapping).
        """
        if Path(path).is_file():  # not a URL
            content = read_config(path)
            unknown = next((key for key in content if self.top_level and key not in self.top_level), None)
            if unknown is not None and self.top_level is not None:
                hint = did_you_mean(str(unknown), self.top_level) or f" Allowed: {', '.join(self.top_level)}."
                raise UserError(f"{path}: Key '{unknown}' is not accepted.{hint}")
        found: Namespace = super().parse_path(path, *args, **kwargs)
        return found

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the error's own line and, for a misspelt key, what is allowed.

        Raises:
            SystemExit: Always, with exit code 2.
        """
        fail(readable(message))


def readable(message: str) -> str:
    """The innermost cause of a jsonargparse message on one line, with a suggestion for a misspelt key."""
    text = " ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -")).rstrip(".")
    found = _UNKNOWN_KEY.search(text)
    if found is None:
        return text
    parts = next(group for group in found.groups() if group).split(".")
    hint = "" if parts[0] in TOP_LEVEL else did_you_mean(parts[0], TOP_LEVEL)
    for part in reversed(parts):  # the last part may be right and the one before it misspelt
        hint = hint or ("" if part in known_keys() else did_you_mean(part, known_keys()))
    return f"{text}.{hint or ' `lit-rlhf fit --print_config` with your config shows every key that is allowed.'}"


_UNKNOWN_KEY = re.compile(
    r"(?:Option|option|Key) ['\"]([\w.]+)['\"] is not (?:accepted|expected)"
    r"|does not accept .*?option '([\w.]+)'"
    r"|[Uu]nrecognized arguments: --([\w.]+)"
)


@cache
def known_keys() -> list[str]:
    """Every key that a config may hold: of the trainer, and of this library's modules, data modules and groups."""
    known = set(TOP_LEVEL) | set(inspect.signature(L.Trainer).parameters)
    for module in modules_named_in_yaml():
        classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
        for kind in classes:
            known |= set(inspect.signature(kind.__init__).parameters)
    return sorted(known - {"self", "args", "kwargs"})


def modules_named_in_yaml() -> list[ModuleType]:
    """The modules of :data:`NAMED_IN_YAML`, imported: jsonargparse finds a short class name among what is imported."""
    rooms = [import_module(name) for name in NAMED_IN_YAML]
    return [import_module(f"{r.__name__}.{found.name}") for r in rooms for found in pkgutil.iter_modules(r.__path__)]
