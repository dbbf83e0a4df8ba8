"""The console entry point. `--help` and `--version` are answered from text, before anything heavy is imported.

A command is a file in ``commands/`` with ``main(argv: Sequence[str]) -> None``. It raises
:class:`~lit_rlhf.user_errors.UserError` for what the user can mend and ``SystemExit(1)`` where its answer is no; what
becomes of an error is decided here, once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

from lit_rlhf.signals import let_through, listening
from lit_rlhf.user_errors import UserError, fail, message_for_user

USAGE = """\
usage: lit-rlhf COMMAND [OPTIONS]

Train and evaluate (configs are Lightning's; every option can be overridden on the command line):
  fit, validate, test, predict   --config FILE [--config FILE ...] [--KEY VALUE ...]
                                 [--ckpt_path last] [--print_config]
The pocket world:
  pocket run [--runs DIR]        the whole job on a small world: data, SFT, reward model, PPO, results
  pocket make OUT                its data and base model as files
Data:
  data check FILES               say what is wrong with which row, before training
Configs:
  configs [NAME]                 list the configs that ship, or print one; `--config preset:NAME` uses one
Results:
  report RUN_DIR [RUN_DIR ...]   one self-contained HTML page of a run
  compare SFT=RUN PPO=RUN [...] --judge JUDGE
                                 who wins: a score, a reward, a chat model or people decide
  tax BASE SFT PPO [...] --text FILES [--tasks TASKS]
                                 what alignment costs on held-out text and tasks
  study STUDY                    arms of an experiment over several seeds: runs, figures, findings
  score --model RM FILE          score the responses in a file
Models:
  export CKPT OUT                a checkpoint as a Hugging Face folder
  plan --config FILE             memory a device, without loading weights

Options:
  -h, --help      this text; `lit-rlhf COMMAND --help` for a command's own options
  --version       the version
  LIT_RLHF_DEBUG=1 in the environment prints tracebacks of errors that are otherwise one line

Exit codes:
  0    done
  1    the answer is no (data check: no usable row, or refused ones with --on-bad-row error; plan: does not fit),
       a stage of `pocket run` failed, or the program has a fault and shows its traceback
  2    something given cannot be used; one line says what
  130  interrupted with Ctrl-C
  138, 140, 143
       fit: ended by SIGUSR1, SIGUSR2 or SIGTERM, saved; `--ckpt_path last` goes on
"""

TRAINING = ("fit", "validate", "test", "predict")
TRAINING_OPTIONS = (
    "--config",
    "--print_config",
    "--seed_everything",
    "--trainer",
    "--model",
    "--data",
    "--ckpt_path",
    "--weights_only",
    "--verbose",
    "--return_predictions",
)
"""First words of their options: what is none of them is refused before the seconds that imports take."""
SLOW = ("score", "compare", "tax", "export", "plan")
"""Other commands that import torch."""

COMMANDS = {
    "pocket run": "lit_rlhf.commands.pocket_run",
    "pocket make": "lit_rlhf.commands.pocket_make",
    "configs": "lit_rlhf.commands.configs",
    "data check": "lit_rlhf.commands.data_check",
    "report": "lit_rlhf.commands.report",
    "compare": "lit_rlhf.commands.compare",
    "tax": "lit_rlhf.commands.tax",
    "study": "lit_rlhf.commands.study",
    "score": "lit_rlhf.commands.score",
    "export": "lit_rlhf.commands.export",
    "plan": "lit_rlhf.commands.plan",
}
"""The module of each verb."""


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line ``args`` (default: the process's own).

    Raises:
        SystemExit: With the exit codes of :data:`USAGE`; 2 comes with one line on stderr.
    """
    words = sys.argv[1:] if args is None else list(args)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE, end="")  # noqa: T201
    elif words[0] == "--version":
        from lit_rlhf import __version__

        print(__version__)  # noqa: T201
    elif words[0] in TRAINING and words[1:] in (["--help"], ["-h"]):
        from lit_rlhf.commands.training_help import training_help

        print(training_help(words[0]), end="")  # noqa: T201
    else:
        _run(words, whole_process=args is None)


def _run(words: list[str], *, whole_process: bool) -> None:
    if words[0] != "fit":
        let_through()  # the others have nothing to save
    try:
        # From before anything heavy is imported.
        with listening(for_good=whole_process) if words[0] == "fit" else nullcontext():
            command, argv = _find(words)
            command(argv)
        sys.stdout.flush()
    except KeyboardInterrupt as stopped:
        fail(str(stopped) or "interrupted", code=130)
    except SystemExit as ended:
        if isinstance(ended.__context__, KeyboardInterrupt):  # Lightning's orderly end after Ctrl-C is silent
            fail("interrupted; `--ckpt_path last` resumes from the last checkpoint", code=130)
        raise
    except BrokenPipeError:
        if words[0] in TRAINING:  # a connection of its own: no reader of ours went away
            raise
        # `lit-rlhf configs | head -1`: the reader has seen enough. Nothing may be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        message = None if os.environ.get("LIT_RLHF_DEBUG") else message_for_user(error)
        if message is None:
            raise
        fail(message)


def with_shipped_configs(words: list[str]) -> list[str]:
    """The words with `preset:NAME` after `--config` or `-c` as the path of that config."""
    if not any("preset:" in word for word in words):
        return words
    from lit_rlhf.commands.config_files import shipped_config

    out = []
    for before, word in zip(["", *words], words, strict=False):
        start, marked, name = word.rpartition("preset:")
        named = marked and (start in ("--config=", "-c=") or (not start and before in ("--config", "-c")))
        out.append(f"{start}{shipped_config(name)}" if named else word)
    return out


def _find(words: list[str]) -> tuple[Callable[[Sequence[str]], None], list[str]]:
    """The ``main`` of the command that ``words`` begin with, and its arguments.

    Raises:
        UserError: There is no such command.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # a console script does not look where it is started; last, so that it hides nothing
    words = with_shipped_configs(words)
    # DeepSpeed warns of a missing GPU whenever transformers looks for it.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
    if words[0] in (*TRAINING, "plan"):
        from lit_rlhf.commands.config_files import read_configs

        read_configs(words)  # before the seconds that imports take
        if words[0] in TRAINING:
            refuse_unknown(words)
        from lit_rlhf.commands.option_names import refuse_misspelt

        refuse_misspelt(words)
    if words[0] in TRAINING:
        say_that_it_starts(words[0])
        return import_module("lit_rlhf.commands.training").main, words
    for length in (1, 2):
        if (name := " ".join(words[:length])) in COMMANDS:
            if name in SLOW and not {"-h", "--help"} & set(words):
                say_that_it_starts(name)
            return import_module(COMMANDS[name]).main, words[length:]
    below = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if below:
        raise UserError(f"{words[0]!r} needs a verb: {', '.join(f'lit-rlhf {name}' for name in below)}.")
    raise UserError(f"unknown command {words[0]!r}; the commands are {', '.join([*TRAINING, *COMMANDS])}.")


def refuse_unknown(words: list[str]) -> None:
    """Refuse an option whose first word no training command has.

    Raises:
        UserError: With a suggestion.
    """
    for word in words[1:]:
        first = word.partition("=")[0].partition(".")[0].rstrip("+")
        if first.startswith("--") and first not in (*TRAINING_OPTIONS, "--help", "--"):
            from lit_rlhf.commands.arguments import did_you_mean

            hint = did_you_mean(first[2:], [option[2:] for option in TRAINING_OPTIONS])
            raise UserError(f"unrecognized arguments: {word}.{hint or f' See `lit-rlhf {words[0]} --help`.'}")


def say_that_it_starts(name: str) -> None:
    """A first word to whoever looks on: importing torch, Lightning and transformers takes seconds."""
    if sys.stderr.isatty():
        sys.stderr.write(f"lit-rlhf {name}: starting\n")
        sys.stderr.flush()
