"""Which options there are, read from source text: a misspelt one is refused before the seconds that imports take.

Only what this library's own classes and Lightning's Trainer say is judged. A class of somebody else's, an option of
which it is not known which class it belongs to, and values are left to the parser.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

import lit_rlhf
from lit_rlhf.commands.arguments import did_you_mean
from lit_rlhf.commands.config_files import read_config
from lit_rlhf.user_errors import UserError

SECTIONS = ("trainer", "model", "data")
EXAMPLES = {
    "model": ("PPOModule", "RewardModelModule", "SFTModule"),
    "data": ("RolloutDataModule", "PreferenceDataModule", "SFTDataModule"),
}
_OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")
Keys = tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """The options of a class.

    Attributes:
        name: Of the class.
        kinds: The annotation of each option.
        is_group: Whether it is a dataclass, whose options stand below it without `class_path`.
    """

    name: str
    kinds: Mapping[str, str]
    is_group: bool


@dataclass
class _Named:
    """The classes that a command line and its configs have named so far, by the path of the option they stand in."""

    classes: dict[Keys, str] = field(default_factory=dict)

    def options(self, path: Keys, kind: str) -> Options | None:
        """Options of what stands at ``path``, an option annotated with ``kind``; None where that is not known."""
        if path == ("trainer",):
            return trainer_options()
        own = _own_class(kind)
        given = self.classes.get(path)
        if given is not None:
            return options_of(given)
        return own if own is not None and own.is_group else None


def refuse_misspelt(words: Sequence[str]) -> None:
    """Refuse options of trainer, module and data module that their classes do not have.

    Args:
        words: The command line of a training command or of `plan`, whose configs can be read.

    Raises:
        UserError: Names the option, the class and what was meant, perhaps.
    """
    named = _Named()
    for option, value in _pairs(words):
        if option in ("--config", "-c"):
            if "://" not in value and not value.startswith("{"):
                _check_config(value, named)
            continue
        path = tuple(part for part in option[2:].rstrip("+").split(".") if part != "init_args")
        if path[0] in SECTIONS:
            _check_option(path, value, named)


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options and their values."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("-") and "=" in word:
            option, _, value = word.partition("=")
            yield option, value
        elif word.startswith("--") or word == "-c":
            yield word, after


def _check_config(path: str, named: _Named) -> None:
    for section, value in read_config(path).items():
        if section in SECTIONS:
            _check_value(value, (section,), "", named, f"{path}: ")


def _check_option(path: Keys, value: str, named: _Named) -> None:
    kind = ""
    for depth in range(1, len(path)):
        last = path[depth]
        if last == "help" and depth == 1 and path[0] in EXAMPLES and (not value or value.startswith("-")):
            raise UserError(f"`--{path[0]}.help` needs a class: {', '.join(EXAMPLES[path[0]])}, or one of your own.")
        if last in ("help", "dict_kwargs"):
            return
        if last == "class_path":
            named.classes[path[:depth]] = value
            return
        options = named.options(path[:depth], kind)
        if options is None:
            return
        kind = _kind_of(path[: depth + 1], options, "--")
    if value[:1] in ("{", "["):
        _check_value(_parsed(value), path, kind, named, "--")
    elif value and not value.startswith("-"):
        named.classes[path] = value


def _check_value(value: Any, path: Keys, kind: str, named: _Named, where: str) -> None:
    """Every option below a mapping, and in the mappings of a list."""
    if isinstance(value, str):
        named.classes[path] = value
    if isinstance(value, list):
        for item in value:
            _check_value(item, path, _inner(kind), named, where)
    if not isinstance(value, Mapping) or kind.startswith("dict["):
        return
    if isinstance(value.get("class_path"), str):
        named.classes[path] = value["class_path"]
    options = named.options(path, kind)
    if options is None:
        _refuse_without_class(value, path, where)
        return
    inside: Any = value
    # Where the class was named before, jsonargparse takes its options without `init_args`.
    with_class = "class_path" in value or "init_args" in value
    if path != ("trainer",) and with_class and (not options.is_group or "class_path" in value):
        _refuse_beside(value, path, options, where)
        inside = value.get("init_args") or {}
    for key, below in inside.items() if isinstance(inside, Mapping) else ():
        _check_value(below, (*path, key), _kind_of((*path, str(key)), options, where), named, where)


def _refuse_without_class(value: Mapping[Any, Any], path: Keys, where: str) -> None:
    """Refuse options of a module or data module that stand where its class belongs."""
    strange = next((key for key in value if key not in _OF_A_CLASS), None)
    if len(path) == 1 and path[0] in EXAMPLES and strange is not None:
        hint = did_you_mean(str(strange), _OF_A_CLASS) or (
            f" Name the class, `class_path: {EXAMPLES[path[0]][0]}` for example, and its options below `init_args`."
        )
        raise UserError(f"{where.replace('--', '')}`{path[0]}.{strange}`: it is not known whose option that is.{hint}")


def _refuse_beside(value: Mapping[Any, Any], path: Keys, options: Options, where: str) -> None:
    """Refuse what stands beside `class_path`."""
    for key in map(str, value):
        if key not in _OF_A_CLASS:
            name = ".".join(path)
            hint = did_you_mean(key, _OF_A_CLASS)
            if not hint:
                near = did_you_mean(key, list(options.kinds)) if key not in options.kinds else ""
                hint = f" Options of {options.name} stand below `init_args`.{near}"
            raise UserError(f"{where.replace('--', '')}`{name}.{key}`: beside `class_path` is no place for it.{hint}")


def _kind_of(path: Keys, options: Options, where: str) -> str:
    """The annotation of the option at ``path``, the last part of which is the name of one of ``options``.

    Raises:
        UserError: There is no such option.
    """
    name = path[-1]
    if name in options.kinds:
        return options.kinds[name]
    hint = did_you_mean(name, list(options.kinds)) or _elsewhere(name) or f" It has {', '.join(options.kinds)}."
    shown = f"`--{'.'.join(path)}`" if where == "--" else f"{where}`{'.'.join(path)}`"
    raise UserError(f"{shown}: {options.name} has no option `{name}`.{hint}")


def _elsewhere(name: str) -> str:
    """`` `clip_range` is an option of ClippedSurrogate.`` for a word that is nearly one, or nothing."""
    owners: dict[str, list[str]] = {}
    for kind in lit_rlhf._EXPORTS:
        found = options_of(kind)
        for option in found.kinds if found is not None else ():
            owners.setdefault(option, []).append(kind)
    near = [name] if name in owners else difflib.get_close_matches(name, owners, n=1, cutoff=0.8)
    return f" `{near[0]}` is an option of {', '.join(owners[near[0]][:3])}." if near else ""


def _parsed(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return None


# ---------------------------------------------------------------- what classes say of themselves


@cache
def trainer_options() -> Options | None:
    """Options of ``L.Trainer``; None where its source is not to be found."""
    found = find_spec("lightning")
    file = Path(found.origin or "").parent / "pytorch" / "trainer" / "trainer.py" if found else Path()
    node = _classes(file).get("Trainer") if file.is_file() else None
    made = None if node is None else _parameters(node)
    return None if made is None else Options("Trainer", made, is_group=True)


@cache
def options_of(name: str) -> Options | None:
    """Options of a class of this library by its name or dotted path; None for others, and where they are not plain."""
    room, _, last = name.rpartition(".")
    if (room and room.split(".")[0] != lit_rlhf.__name__) or last not in lit_rlhf._EXPORTS:
        return None
    file = _file(lit_rlhf._EXPORTS[last])
    node = _classes(file).get(last) if file.is_file() else None
    return None if node is None else _options(node, file)


def _own_class(kind: str) -> Options | None:
    """The first class of this library that an annotation names: ``ReferenceConfigLike`` stands for its config."""
    words = [word.removesuffix("Like") for word in re.findall(r"\w+", kind)]
    return next((found for word in words if word in lit_rlhf._EXPORTS if (found := options_of(word))), None)


def _inner(kind: str) -> str:
    """What a list is of."""
    return re.sub(r"^list\[(.*)\]$", r"\1", kind)


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _classes(file: Path) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _tree(file).body if isinstance(node, ast.ClassDef)}


def _options(node: ast.ClassDef, file: Path) -> Options | None:
    bases = [_base(ast.unparse(base), file) for base in node.bases]
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        kinds: dict[str, str] = {}
        for inherited in bases:
            kinds |= {} if inherited is None else inherited.kinds
        kinds |= dict(_fields(node))
        return Options(node.name, kinds, is_group=True)
    if any(isinstance(n, ast.FunctionDef) and n.name == "__init__" for n in node.body):
        made = _parameters(node)
        return None if made is None else Options(node.name, made, is_group=False)
    above = next((found for found in bases if found is not None), None)
    return None if above is None else Options(node.name, above.kinds, is_group=False)


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """The fields of a dataclass that it is made with."""
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            kind, default = ast.unparse(line.annotation), "" if line.value is None else ast.unparse(line.value)
            if not kind.startswith("ClassVar") and "init=False" not in default:
                yield line.target.id, kind


def _base(name: str, file: Path) -> Options | None:
    """Options of a base class, in the same file or imported from this library."""
    name = re.sub(r"\[.*", "", name)
    if name in _classes(file):
        return _options(_classes(file)[name], file)
    imports = [node for node in _tree(file).body if isinstance(node, ast.ImportFrom)]
    module = next((node.module for node in imports if name in [alias.name for alias in node.names]), None)
    other = _file(module or "")
    return _options(_classes(other)[name], other) if other.is_file() and name in _classes(other) else None


def _file(module: str) -> Path:
    """The file of a module of this library."""
    return Path(lit_rlhf.__file__).parent.parent / f"{module.replace('.', '/')}.py"


def _parameters(node: ast.ClassDef) -> dict[str, str] | None:
    """Parameters of the class's ``__init__``; None where it takes more than it names."""
    made = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
    if made.args.kwarg is not None or made.args.vararg is not None:
        return None
    named = [*made.args.posonlyargs, *made.args.args, *made.args.kwonlyargs][1:]
    return {arg.arg: "" if arg.annotation is None else ast.unparse(arg.annotation) for arg in named}
