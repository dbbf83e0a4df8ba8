"""`lit-rlhf configs [NAME]`: the configs that ship with the library."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_rlhf.commands.arguments import CommandParser
from lit_rlhf.commands.config_files import shipped_config, shipped_names

DESCRIPTION = """List the configs that ship with the library, or print one as a start for your own:
  lit-rlhf configs ppo_max > mine.yaml
  lit-rlhf fit --config preset:ppo_max --config mine.yaml"""


def main(argv: Sequence[str]) -> None:
    """List the configs, or print one.

    Raises:
        UserError: There is none of this name, or there are several.
    """
    parser = CommandParser("configs", DESCRIPTION)
    parser.add_argument("name", nargs="?", help="presets/ppo_max, ppo_max, pocket/sft, ...; left out: list them all")
    name = parser.parse_args(argv).name
    if name is not None:
        sys.stdout.write(shipped_config(name).read_text(encoding="utf-8"))
        return
    names = shipped_names()
    width = max(map(len, names))
    for known, path in names.items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"{known:<{width}}  {first.lstrip('# ')}")  # noqa: T201
