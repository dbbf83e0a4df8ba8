"""The console entry point. `--help` and `--version` are answered from text, before anything heavy is imported."""

from __future__ import annotations

import sys

USAGE = """\
usage: lit-rlhf COMMAND [OPTIONS]

Train (configs are Lightning's; every option can be overridden on the command line):
  fit, validate, test, predict   --config FILE [--config FILE ...] [--KEY VALUE ...] [--print_config]

Options:
  -h, --help     this text        lit-rlhf COMMAND --help    a command's own options
  --version      the version
"""


def main(args: list[str] | None = None) -> None:
    """Run the command line ``args`` (default: the process's own)."""
    words = sys.argv[1:] if args is None else args
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)  # noqa: T201
        return
    if words[0] == "--version":
        from lit_rlhf import __version__

        print(__version__)  # noqa: T201
        return
    print(f"lit-rlhf: unknown command {words[0]!r}\n\n{USAGE}", file=sys.stderr)  # noqa: T201
    raise SystemExit(2)
