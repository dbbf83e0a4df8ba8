"""The argument parser of every command but the training ones: whole option names and errors of one line."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Collection
from typing import NoReturn

from lit_rlhf.user_errors import fail


class CommandParser(argparse.ArgumentParser):
    """argparse without its two surprises: shortened options are refused, and an error is one line, exit code 2.

    Args:
        verb: What follows ``lit-rlhf`` on the command line, for example ``data check``.
        description: The first lines of ``--help``; line breaks are kept.
        epilog: What stands below the options, exit codes for example.
    """

    def __init__(self, verb: str, description: str, *, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"lit-rlhf {verb}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """End with the error, a suggestion for a misspelt option, and where help is.

        Raises:
            SystemExit: Always, with exit code 2.
        """
        unknown = re.search(r"unrecognized arguments: (--[\w-]+)", message)
        hint = did_you_mean(unknown[1], self._option_string_actions) if unknown else ""
        fail(f"{message}.{hint or f' See `{self.prog} --help`.'}")


def did_you_mean(word: str, known: Collection[str], *, most: int = 3) -> str:
    """`` Did you mean: a, b?`` for a word that is none of ``known``, or nothing.

    Names that begin with the word come first: it may be one that somebody shortened.
    """
    longer = sorted((name for name in known if name.startswith(word) and name != word), key=len)
    near = [*longer, *difflib.get_close_matches(word, known, n=most)]
    names = [name for name in dict.fromkeys(near) if name != word][:most]
    return f" Did you mean: {', '.join(names)}?" if names else ""
