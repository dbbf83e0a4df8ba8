"""`lit-rlhf pocket run`: the whole job on the pocket world, from data to a result table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.commands.arguments import CommandParser
from lit_rlhf.user_errors import UserError

DESCRIPTION = """\
The main job on the embedded pocket world, with models small enough for a CPU:

  1. data and an untrained base model      5. PPO-max and vanilla PPO, side by side
  2. pretraining                           6. their answers to held-out prompts, and SFT's
  3. supervised fine-tuning                7. win rates by the gold scorer, a picture, a report
  4. reward model

Each stage is a `lit-rlhf` command, printed before it runs. Stages that are done are skipped, and one that was
interrupted (Ctrl-C) resumes from its last checkpoint: the same command again is cheap. Delete DIR to start over.
A few minutes on two cores."""

EPILOG = """\
DIR then holds results.md and results.json (win rates over SFT), report.html (the two PPO runs), panels.png (needs
matplotlib: pip install 'lit-rlhf[plots]'), the configs that were used, and a folder for each stage with checkpoints,
logs and, in export/final, the model.

Exit codes: 0 done; 1 a stage failed, its last lines are shown; 2 an option cannot be used; 130 interrupted."""


def main(argv: Sequence[str]) -> None:
    """Run every stage that is not done yet, then say where everything is.

    Raises:
        UserError: The directory holds another seed's run, or an option cannot be used.
        SystemExit: 1 if a stage failed.
        KeyboardInterrupt: After Ctrl-C; says how to go on.
    """
    parser = CommandParser("pocket run", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--runs", type=Path, metavar="DIR", default=Path("runs/pocket"), help="default: runs/pocket")
    parser.add_argument("--seed", type=int, default=0, help="of data, models, sampling and shuffles (default: 0)")
    parser.add_argument("--epochs", type=int, help="PPO iterations (default: the configs')")
    args = parser.parse_args(argv)
    if args.epochs is not None and args.epochs < 1:
        raise UserError(f"`--epochs` ({args.epochs}) must be at least 1.")
    from lit_rlhf.commands.pocket_pipeline import Pipeline

    try:
        Pipeline(args.runs, args.seed, args.epochs).run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: the same command resumes from the last checkpoint") from None
