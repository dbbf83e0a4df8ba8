"""YAML configs: the ones that ship, and reading those of users with what a YAML parser lets pass refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

import lit_rlhf
from lit_rlhf.commands.arguments import did_you_mean
from lit_rlhf.user_errors import UserError


def shipped_configs() -> Path:
    """The folder of the configs that ship with the library.

    In a checkout it is ``configs/`` beside the package (also where the checkout is installed with ``pip install -e``);
    a wheel holds the same files inside the package.

    Raises:
        FileNotFoundError: They are in neither place.
    """
    package = Path(lit_rlhf.__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "pocket").is_dir():
            return folder
    raise FileNotFoundError(f"The configs that ship with lit_rlhf are neither in {package} nor beside it.")


def shipped_names() -> dict[str, Path]:
    """Every shipped config by its name: `presets/ppo_max`, `pocket/sft`, ..."""
    root = shipped_configs()
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def shipped_config(name: str) -> Path:
    """A shipped config by its name; `presets/` may be left out, as may any folder where one file alone has the name.

    Raises:
        UserError: There is none of this name, or there are several.
    """
    known, wanted = shipped_names(), name.removesuffix(".yaml")
    for exact in (wanted, f"presets/{wanted}"):
        if exact in known:
            return known[exact]
    found = [full for full in known if full.rpartition("/")[2] == wanted]
    if len(found) == 1:
        return known[found[0]]
    if found:
        raise UserError(f"There are several configs '{name}': {', '.join(found)}.")
    short = [full.rpartition("/")[2] for full in known]
    raise UserError(
        f"No config '{name}' ships with lit_rlhf.{did_you_mean(wanted, [*known, *short])} See `lit-rlhf configs`."
    )


def read_configs(words: Sequence[str]) -> None:
    """Read every config file that a command line names, for what is wrong with one.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: See :func:`read_config`.
    """
    for before, word in zip(["", *words], words, strict=False):
        path = word.removeprefix("--config=") if word.startswith("--config=") else word
        if (before in ("--config", "-c") or path != word) and "://" not in path and not path.startswith(("{", "-")):
            read_config(path)


def read_config(path: str | PathLike[str]) -> dict[str, Any]:
    """A config file as a mapping.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is not YAML in UTF-8, empty, not a mapping, or a key stands twice in one mapping: YAML parsers
            keep the last one and say nothing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no config file '{path}'.")
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML in UTF-8: {error}") from error
    for key in _repeated_keys(tree, set()):
        line = key.start_mark.line + 1
        raise UserError(f"{path}, line {line}: the key '{key.value}' stands twice in the same mapping. Keep one.")
    if not isinstance(content, dict):
        found = "empty" if content is None else f"a {type(content).__name__}"
        raise UserError(f"{path} must be a mapping of `key: value`; it is {found}.")
    return content


def _repeated_keys(node: yaml.Node | None, done: set[int]) -> Iterator[yaml.Node]:
    """The second of two equal keys, wherever it is below ``node``; ``<<`` merges several mappings and may repeat."""
    if node is None or id(node) in done:  # an alias is the node it names
        return
    done.add(id(node))
    if isinstance(node, yaml.MappingNode):
        seen: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    yield key
                seen.add((key.tag, key.value))
            yield from _repeated_keys(value, done)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated_keys(value, done)
