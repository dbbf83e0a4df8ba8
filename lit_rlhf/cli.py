"""The console entry point. `--help` and `--version` are answered from text, before anything heavy is imported."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module

from lit_rlhf.signals import listening
from lit_rlhf.user_errors import fail, for_users

USAGE = """\
usage: lit-rlhf COMMAND [OPTIONS]

Train and evaluate (configs are Lightning's; every option can be overridden on the command line):
  fit, validate, test, predict   --config FILE [--config FILE ...] [--KEY VALUE ...]
                                 [--ckpt_path last] [--print_config]
Data:
  pocket make OUT                write the embedded pocket world as files
  data check FILES               say what is wrong with which row, before training
Results:
  report RUN_DIR [RUN_DIR ...]   one self-contained HTML page of a run
  compare SFT_RUN RUN [...]      win/tie/lose and gold scores of evaluated policies
  score --model RM FILE          score the replies in a file
Models:
  export CKPT OUT                a checkpoint as a Hugging Face folder
  plan --config FILE             memory a device, without loading weights

Options:
  -h, --help      this text; `lit-rlhf COMMAND --help` for a command's own options
  --version       the version
  LIT_RLHF_DEBUG=1 in the environment prints tracebacks of errors that are otherwise one line
"""

TRAINING = ("fit", "validate", "test", "predict")

COMMANDS = {
    "pocket": ("make", "lit_rlhf.pocket.make"),
    "data": ("check", "lit_rlhf.commands.data_check"),
    "report": (None, "lit_rlhf.commands.report"),
    "compare": (None, "lit_rlhf.commands.compare"),
    "score": (None, "lit_rlhf.commands.score"),
    "export": (None, "lit_rlhf.commands.export"),
    "plan": (None, "lit_rlhf.commands.plan"),
}


def main(args: list[str] | None = None) -> None:
    """Run the command line ``args`` (default: the process's own).

    Raises:
        SystemExit: 2 for what the user can mend, with one line on stderr.
    """
    words = sys.argv[1:] if args is None else list(args)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")  # noqa: T201
    elif words[0] == "--version":
        from lit_rlhf import __version__

        print(__version__)  # noqa: T201
    else:
        _run(words)


def _run(words: list[str]) -> None:
    try:
        _command(words)
    except KeyboardInterrupt:
        print("lit-rlhf: interrupted", file=sys.stderr)  # noqa: T201
        raise SystemExit(130) from None
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):  # Lightning's orderly end after Ctrl-C is silent
            fail("interrupted; `--ckpt_path last` goes on from the last checkpoint")
        raise
    except Exception as error:
        told = None if os.environ.get("LIT_RLHF_DEBUG") else for_users(error)
        if told is None:
            raise
        fail(str(told))


def _command(words: list[str]) -> None:
    # DeepSpeed warns of a missing GPU whenever transformers looks for it.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    name, rest = words[0], words[1:]
    if name in TRAINING:
        with listening() if name == "fit" else nullcontext():  # before anything heavy is imported
            from lit_rlhf.commands.training import run

            run(words)
        return
    if name not in COMMANDS:
        fail(f"unknown command {name!r}; the commands are {', '.join([*TRAINING, *COMMANDS])}")
    verb, module = COMMANDS[name]
    if verb is not None:
        if rest[:1] != [verb]:
            fail(f"{name!r} has one verb: lit-rlhf {name} {verb} ...")
        rest = rest[1:]
    command: Callable[[list[str]], None] = import_module(module).main
    command(rest)
