"""The pocket study: PPO-max and vanilla PPO of the same schedule over several seeds, judged by the gold scorer.

    python bin/studies/pocket_study.py --seeds 11 12 13 --split test --epochs 120 --runs runs/study

For every seed: data, pretraining, SFT, reward model, both PPO runs with an evaluation of all held-out prompts every
ten iterations, four SFT answers a prompt as the opponent. Writes study.json, study.md and curves.png into --runs.
Finished stages are not run again.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_rlhf.commands.pocket_pipeline import BASELINE_SAMPLES, Pipeline
from lit_rlhf.commands.processes import wait_for

TIE_MARGIN = 0.08  # as configs/pocket/compare.yaml
ARMS = {"ppo_max": "PPO-max", "ppo_vanilla": "vanilla PPO"}


def main() -> None:
    """Run what is missing, then write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--split", choices=["val", "test"], default="test", help="held-out prompts to judge on")
    parser.add_argument("--epochs", type=int, default=120, help="PPO iterations of both arms")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--only-report", action="store_true", help="no runs, just table and plot of what is there")
    args = parser.parse_args()
    results = {}
    for seed in args.seeds:
        study = Study(args.runs / f"seed{seed}", seed, args.epochs, split=args.split)
        if not args.only_report:
            study.run()
        results[seed] = study.curves()
    (args.runs / "study.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    table = markdown(results, args.split)
    (args.runs / "study.md").write_text(table, encoding="utf-8")
    plot(results, args.runs / "curves.png")
    print(table)


class Study(Pipeline):
    """One seed of the study.

    Args:
        runs: Where the seed's runs go.
        seed: Seed of everything.
        epochs: PPO iterations.
        split: Held-out prompts that validation answers.
    """

    threads_alone = 1

    def __init__(self, runs: Path, seed: int, epochs: int, *, split: str) -> None:
        super().__init__(runs, seed, epochs)
        self.split = split

    def run(self) -> None:
        """All stages; both arms side by side."""
        self.configs()
        for arm in ARMS:
            path = self.runs / "configs" / f"{arm}.yaml"
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("prompts_val", f"prompts_{self.split}"), encoding="utf-8")
        self.data()
        for stage in ("pretrain", "sft", "reward"):
            self.train([stage])
        self.baseline()
        self.train(list(ARMS))

    def baseline(self) -> None:
        """Several SFT answers to each prompt, the opponents."""
        root = self.runs / "test" / "sft"
        if any((root / "evaluations").glob("val-*.jsonl")):
            return
        config = str(self.runs / "configs" / "ppo_max.yaml")
        words = ["validate", "--config", config, *self.seeds(), "--trainer.logger", "false"]
        words += ["--data.eval_samples", str(BASELINE_SAMPLES), "--trainer.default_root_dir", str(root)]
        wait_for([self.command(*words, log=self.runs / "test-sft.log")])

    def curves(self) -> dict[str, list[dict[str, Any]]]:
        """Of each arm, one point an evaluation: iteration, win rates with intervals, and means."""
        from lit_rlhf.evaluation.answers import read_answers
        from lit_rlhf.evaluation.comparison import Grouping, against_baseline
        from lit_rlhf.evaluation.judges import ScoreJudge

        gold = ScoreJudge("gold", tie_margin=TIE_MARGIN)
        grouping = Grouping(cluster_by=("family", "argument"), split_by="kind")
        baseline = read_answers(self.runs / "test" / "sft")
        out = {}
        for arm in ARMS:
            points = []
            for path in sorted((self.runs / arm / "evaluations").glob("val-step*.jsonl")):
                found = re.search(r"step(\d+)", path.name)
                assert found is not None
                policy = against_baseline(arm, read_answers(path), baseline, gold, grouping=grouping)
                points.append({"iteration": int(found[1]) // 2, **policy.to_dict()})
            out[arm] = points
        return out


def markdown(results: dict[int, dict[str, list[dict[str, Any]]]], split: str) -> str:
    """One row a seed and arm: peak, end, fall, and the end's win rates with intervals."""
    lines = [
        f"Win % over SFT (ties half) on the {split} prompts; 95 % intervals clustered by (family, argument).",
        "",
        "| seed | arm | iterations | peak (at) | end | fall | helpful at end | harmless at end | length | KL |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for seed, arms in results.items():
        for arm, points in arms.items():
            peak = max(points, key=lambda p: p["win_rates"]["all"]["rate"])
            last = points[-1]
            fall = 100 * (peak["win_rates"]["all"]["rate"] - last["win_rates"]["all"]["rate"])
            cells = [seed, ARMS[arm], last["iteration"], f"{_rate(peak, 'all')} ({peak['iteration']})"]
            cells += [_rate(last, "all"), f"{fall:.1f}", _rate(last, "helpful"), _rate(last, "harmless")]
            cells += [f"{last['response_length']:.1f}", f"{last['kl']:.3f}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _rate(point: dict[str, Any], group: str) -> str:
    rate = point["win_rates"][group]
    return f"{100 * rate['rate']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def plot(results: dict[int, dict[str, list[dict[str, Any]]]], out: Path) -> None:
    """Gold win rate, proxy score, length and KL over iterations, a line a seed."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    panels: dict[str, Callable[[dict[str, Any]], float]] = {
        "gold win rate over SFT, %": lambda p: 100 * p["win_rates"]["all"]["rate"],
        "reward-model score": lambda p: p["score"],
        "response length, tokens": lambda p: p["response_length"],
        "KL to the reference, nats per token": lambda p: p["kl"],
    }
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    for ax, (title, value) in zip(axes, panels.items(), strict=True):
        for color, style, arm in (("#0072B2", "-", "ppo_max"), ("#D55E00", "--", "ppo_vanilla")):
            for i, arms in enumerate(results.values()):
                points = arms[arm]
                label = f"{ARMS[arm]} ({len(results)} seeds)" if i == 0 else None
                ax.plot([p["iteration"] for p in points], [value(p) for p in points], style, color=color, label=label)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("iteration")
        ax.grid(alpha=0.3)
    axes[0].axhline(50, color="black", linewidth=0.8)
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
