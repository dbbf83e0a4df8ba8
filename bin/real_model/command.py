"""`bin/real-model`: its options, and what it says before it starts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lit_rlhf.user_errors import UserError, fail
from real_model import cost, data, report, weights
from real_model.study import ROOT, Options, Study

PPO_MAX_HELP = "last: further words for the fit of PPO-max, e.g. --ppo-max --model.kl_controller.init_args.coef 0.2"


def main(argv: Sequence[str], *, description: str | None = None) -> None:
    """Run what is missing, then write the report.

    Raises:
        SystemExit: 2 if an option cannot be used, 1 if a stage failed, 130 after Ctrl-C.
    """
    args = _parser(description).parse_args(argv)
    try:
        _run(args)
    except (UserError, FileNotFoundError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted: the same command goes on from the last checkpoint", code=130)


def _run(args: argparse.Namespace) -> None:
    if len(set(args.seeds)) < len(args.seeds):
        raise UserError(f"`--seeds` ({' '.join(map(str, args.seeds))}) must be different ones.")
    bf16 = args.precision == "bf16" or (args.precision == "auto" and has_fast_bf16())
    iterations, prompts = (2, 4) if args.short else (args.iterations, args.test_prompts)
    options = Options(
        iterations=iterations, test_prompts=prompts, ptx=args.ptx, bf16=bf16, ppo_max=tuple(args.ppo_max),
        short=args.short,
    )  # fmt: skip
    model = args.model or weights.model_folder(weights.cache_folder())
    if not (args.only_report or args.cost):
        print(f"{len(args.seeds)} seed(s), {len(options.arms)} arms: {options.cost(len(args.seeds))}", flush=True)
        make_data(args.pairs, args.runs / "data")
    studies = [Study(args.runs, seed, options, model=model) for seed in args.seeds]
    if args.cost:
        written = cost.measure(studies[0])
    else:
        for study in [] if args.only_report else studies:
            study.run()
        written = report.write(studies, args.runs)
    print(*written, sep="\n")


def make_data(pairs: Path | None, out: Path) -> None:
    """The files of the study, once.

    Raises:
        UserError: There are none, and no preferences are named.
        FileNotFoundError: The preferences do not exist.
    """
    if (out / "prose_test.jsonl").exists():  # the last one that is written
        return
    if pairs is None:
        raise UserError("`--pairs` must name preference data, such as HH-RLHF's harmless-base/test.jsonl.gz.")
    if not pairs.exists():
        raise FileNotFoundError(f"{pairs} does not exist.")
    counts = data.split(pairs, out)
    print("rows: " + ", ".join(f"{name} {count}" for name, count in counts.items()), flush=True)
    pages = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "real_model.md"]
    data.prose(pages, out)


def has_fast_bf16() -> bool:
    """Whether this CPU has instructions for products in bf16."""
    import torch

    return bool(torch.cpu._is_amx_tile_supported())


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bin/real-model", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, help="preference data; needed once for a --runs folder")
    parser.add_argument("--runs", type=Path, default=Path("runs/real_model"), help="default: runs/real_model")
    parser.add_argument("--model", type=Path, help="another chat model's folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--iterations", type=int, default=60, help="of PPO (default: 60)")
    parser.add_argument("--test-prompts", type=int, default=200, help="held-out dialogues answered at the end")
    parser.add_argument("--ptx", action="store_true", help="a third arm: PPO-max with prose in its updates")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 with AMX")
    parser.add_argument("--ppo-max", nargs=argparse.REMAINDER, default=[], metavar="WORD", help=PPO_MAX_HELP)
    parser.add_argument("--short", action="store_true", help="two steps of everything: does it run?")
    parser.add_argument("--only-report", action="store_true", help="no runs, just pages of what is there")
    parser.add_argument("--cost", action="store_true", help="measure four copies against one backbone instead")
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
