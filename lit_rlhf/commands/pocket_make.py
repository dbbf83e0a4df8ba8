"""`lit-rlhf pocket make OUT`: the pocket world as HH-format files and a base model folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.commands.arguments import CommandParser


def main(argv: Sequence[str]) -> None:
    """Write the files and say where."""
    parser = CommandParser("pocket make", "Write the pocket world as HH-format files and a base model folder.")
    parser.add_argument("out", type=Path, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled data and the initialization (default: 0)")
    args = parser.parse_args(argv)
    from lit_rlhf.pocket.make import make

    for path in make(args.out, seed=args.seed):
        print(path)  # noqa: T201
