"""How `fit`, `validate`, `test` and `predict` read options and configs: Lightning's parser with one-line errors."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from collections.abc import Mapping, Sequence
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
        self._negative_number_matcher = _NEGATIVE  # argparse takes `-1e-4` for an option

    def parse_args(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        namespace: Namespace | None = None,
        env: bool | None = None,  # noqa: FBT001
        defaults: bool = True,  # noqa: FBT001, FBT002
        **kwargs: Any,
    ) -> Namespace:
        """As jsonargparse's, which hands `null` to the parser of a group of options as the text `None`."""
        words = sys.argv[1:] if args is None else args
        pairs = zip(["", *words], words, strict=False)
        plain = ["null" if word == "None" and before.startswith("--") else word for before, word in pairs]
        plain = [re.sub(r"^(--[\w.]+=)None$", r"\1null", word) for word in plain]
        found: Namespace = super().parse_args(plain, namespace, env, defaults, **kwargs)
        return found

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

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """The config as YAML.

        Raises:
            UserError: It has a value that YAML cannot say: the default of somebody else's class.
        """
        try:
            return str(super().dump(*args, **kwargs))
        except ValueError as error:
            found = re.search(r"cannot represent an object', (.+?)\)\n", str(error))
            if found is None:
                raise
            raise UserError(
                f"A class in the config has the default {found[1]}, which YAML cannot say: give that argument as text."
            ) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the error's own line and, for a misspelt key, what is allowed.

        Raises:
            SystemExit: Always, with exit code 2.
        """
        fail(readable(message))


def check_groups(section: str, class_path: str | None, options: Mapping[str, Any]) -> None:
    """Refuse a value where a group of options belongs.

    Args:
        section: `model` or `data`.
        class_path: The class; one that cannot be found is refused elsewhere.
        options: Its arguments.

    Raises:
        UserError: Names the group and its options.
    """
    kind = next((c for c in _classes() if str(class_path).rpartition(".")[2] == c.__name__), None)
    parameters = {} if kind is None else inspect.signature(kind).parameters
    for name, value in options.items():
        group = re.search(r"\w+Config", str(parameters[name].annotation)) if name in parameters else None
        if group is not None and not isinstance(value, Mapping | Namespace | str | None):
            raise UserError(f"`{section}.{name}` ({value!r:.80}) must be a mapping of options, those of {group[0]}.")


def readable(message: str) -> str:
    """The innermost cause of a jsonargparse message on one line, with a suggestion for a misspelt key."""
    text = " ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -")).rstrip(".")
    named = _class_problem(text) or _own_words(message) or _union_problem(text)
    if named:
        return named
    found = _UNKNOWN_KEY.search(text)
    if found is None:
        return text
    parts = next(group for group in found.groups() if group).split(".")
    hint = "" if parts[0] in TOP_LEVEL else did_you_mean(parts[0], TOP_LEVEL)
    for part in reversed(parts):  # the last part may be right and the one before it misspelt
        near = [key for key in known_keys() if part in key and key != part]  # another class's, perhaps
        hint = hint or did_you_mean(part, near if part in known_keys() else known_keys())
    return f"{text}.{hint or ' `lit-rlhf fit --print_config` with your config shows every key that is allowed.'}"


def _class_problem(text: str) -> str:
    """What is wrong with the name of a class, or nothing."""
    key, cause = _of_key(text), r"Problem with given class_path '([^']+)': ((?:No module named|module) '[^']+'"
    found = re.search(cause + "[^<]*?) Expected", text) or re.search(cause + ".*)$", text)
    if found:
        where = " Modules in the current folder are found, too." if found[2].startswith("No module") else ""
        own = found[1].startswith("lit_rlhf.")
        hint = did_you_mean(found[1].rpartition(".")[2], known_classes()) if own else ""
        return f"{key}`class_path` ({found[1]}): {found[2]}.{where}{hint}"
    found = re.search(r"Expected a dot import path string: (\w+)", text)
    if found:
        hint = did_you_mean(found[1], known_classes())
        return f"{key}there is no class '{found[1]}'.{hint or ' One of your own is `my_module.Mine`.'}"
    return ""


def _own_words(message: str) -> str:
    """What a class says while it is imported or made (a syntax error, a misspelt hook, a refused value), or nothing."""
    given = re.search(r"^ *Given value: (?:((?:\w+\.)+\w+)$|Namespace\(class_path='([\w.]+)')", message, re.MULTILINE)
    _, _, errors = message.partition("Errors:")
    lines = [line.strip()[2:] for line in errors.splitlines() if line.strip().startswith("- ")]
    causes = [
        line for line in lines if not line.startswith(("Expected a", "Does not validate", "Problem with", "Parser key"))
    ]
    if given is None or not causes:
        return ""
    name = (given[1] or given[2]).rpartition(".")[2]
    return f"{_of_key(message) or f'{name}: '}{causes[0].rstrip('.')}."


def _union_problem(text: str) -> str:
    """A value of the wrong type in few words, or nothing."""
    found = re.search(r"Does not validate against any of the Union subtypes Subtypes: \[(.*)\] Errors: ", text)
    given = re.search(r"Given value: (.*)$", text)
    unset = re.search(r"Given value: NestedArg\(key='([^']+)'", text)
    if unset is not None:
        return f"{_of_key(text)}it has no class yet, so that `{unset[1]}` cannot be set: name the class first."
    if "cannot represent an object" in text:
        return "A callback takes an argument that YAML cannot hold; for Timer there is `trainer.max_time`."
    if found is None or given is None or "class_path" in text or "init_args" in text:
        return ""
    choices = re.findall(r"'([^']+)'", re.sub(r"<class '[^']+'>", "", found[1]))
    kinds = [re.sub(r"\w+\.", "", kind) for kind in re.findall(r"<class '([^']+)'>", found[1])]
    named = [*dict.fromkeys([*choices, *("null" if kind == "NoneType" else kind for kind in kinds)])]
    return f"{_of_key(text)}{given[1]} is none of {', '.join(named)}.{did_you_mean(given[1], choices)}"


def _of_key(text: str) -> str:
    key = re.search(r'Parser key "([^"]+)"', text)
    return f"`{key[1]}`: " if key else ""


_NEGATIVE = re.compile(r"^-(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$")
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


@cache
def known_classes() -> list[str]:
    """Names of classes that YAML can give without a module: this library's, and Lightning's callbacks and loggers."""
    others = inspect.getmembers(import_module("lightning.pytorch.callbacks"), inspect.isclass)
    found = {c.__name__ for c in _classes()} | {name for name, _ in others}
    return sorted(name for name in found if not name.startswith("_"))


@cache
def _classes() -> list[type]:
    """This library's, of the rooms that YAML names."""
    found = [c for m in modules_named_in_yaml() for _, c in inspect.getmembers(m, inspect.isclass)]
    return [c for c in found if c.__module__.startswith("lit_rlhf.")]


def modules_named_in_yaml() -> list[ModuleType]:
    """The modules of :data:`NAMED_IN_YAML`, imported: jsonargparse finds a short class name among what is imported."""
    rooms = [import_module(name) for name in NAMED_IN_YAML]
    return [import_module(f"{r.__name__}.{found.name}") for r in rooms for found in pkgutil.iter_modules(r.__path__)]
