"""Does a reward model of the pocket world know facts? Right answers against the same response with one flaw.

    python bin/studies/pocket_facts.py runs/pocket/reward/export/final --split test

The questions are held out: their facts appear in no training text of any stage. Half is chance; intervals are 95 %,
clustered by (family, argument).
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from lit_rlhf.commands.score import load_scorer
from lit_rlhf.data.records import read_messages
from lit_rlhf.evaluation.judges.base import by_margin
from lit_rlhf.evaluation.win_rate import WinRate, win_rates_by
from lit_rlhf.pocket.make import held_out_prompts
from lit_rlhf.pocket.responses import FLAWS, answer_and_flawed
from lit_rlhf.pocket.world import LIST, Prompt, Split

# Versions of every question, drawn with a seed of their own: the same for every reward model.
VERSIONS = 4


def main() -> None:
    """Print a table row for every reward model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="reward model folders")
    parser.add_argument("--split", choices=["train", "val", "test"], default="test")
    args = parser.parse_args()
    flaws = FLAWS[0]
    print(f"| reward model | {' | '.join(flaws)} |\n|{'---|' * (len(flaws) + 1)}")
    for path in args.models:
        rates = accuracies(path, args.split)
        cells = [f"{100 * r.rate:.0f} [{100 * r.low:.0f}, {100 * r.high:.0f}]" for r in (rates[f] for f in flaws)]
        print(f"| {path.as_posix()} | {' | '.join(cells)} |", flush=True)


def accuracies(path: Path, split: Split) -> dict[str, WinRate]:
    """Share of pairs whose right answer scores higher, by flaw."""
    scorer = load_scorer(str(path))
    cases = list(questions(split))
    rows = []
    for prompt, _, right, flawed in cases:
        rows += scorer.encode_pair(read_messages(prompt.messages, name="messages"), right, flawed)[0]
    scores = scorer.score_ids(rows)
    return dict(
        win_rates_by(
            [flaw for _, flaw, _, _ in cases],
            [[by_margin(a, b, tie_margin=0.0)] for a, b in zip(scores[::2], scores[1::2], strict=True)],
            clusters=[(prompt.family, prompt.argument) for prompt, *_ in cases],
        )
    )


def questions(split: Split) -> Iterator[tuple[Prompt, str, str, str]]:
    """(question, flaw, right answer, flawed answer) for the answerable held-out questions."""
    rng = random.Random(f"pocket/facts/{split}")
    for prompt in held_out_prompts(split):
        if prompt.kind == "harmless" or prompt.one_word or prompt.family == LIST:
            continue
        for flaw in FLAWS[0]:
            for _ in range(VERSIONS):
                yield (prompt, flaw, *answer_and_flawed(rng, prompt, flaw))


if __name__ == "__main__":
    main()
