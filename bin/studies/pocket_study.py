"""The pocket study: PPO-max and vanilla PPO of the same schedule over several seeds, judged by the gold scorer.

    python bin/studies/pocket_study.py --seeds 11 12 13 --split test --epochs 120 --runs runs/study

For every seed: data, pretraining, SFT, reward model, both PPO runs with an evaluation of all held-out prompts every
ten iterations, four SFT answers a prompt as the opponent. Writes study.json, study.md and curves.png into --runs.
Finished stages are not run again. With --tax a third arm, PPO-max with ptx, and `lit-rlhf tax` of every seed's models
on held-out text and facts (extra `lm-eval`): tax.md, and seedN/tax.{json,md,html}.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lit_rlhf.commands.pocket_pipeline import BASELINE_SAMPLES, Pipeline
from lit_rlhf.commands.processes import Running, wait_for
from lit_rlhf.user_errors import fail

TIE_MARGIN = 0.08  # as configs/pocket/compare.yaml
ARMS = {"ppo_max": "PPO-max", "ppo_vanilla": "vanilla PPO"}
PTX = "ppo_ptx"
TAXED_ARMS = {**ARMS, PTX: "PPO-max + ptx"}
TAXED = {"pretrain": "base", "sft": "SFT", "ppo_max": "PPO-max", PTX: TAXED_ARMS[PTX], "ppo_vanilla": "vanilla PPO"}
PTX_COEF = 1.0  # as configs/presets/ppo_max.yaml; not tuned here


def main() -> None:
    """Run what is missing, then write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--split", choices=["val", "test"], default="test", help="held-out prompts to judge on")
    parser.add_argument("--epochs", type=int, default=120, help="PPO iterations of both arms")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    parser.add_argument("--only-report", action="store_true", help="no runs, just table and plot of what is there")
    parser.add_argument("--tax", action="store_true", help="PPO-max with ptx, too, and what alignment costs")
    args = parser.parse_args()
    if args.tax and importlib.util.find_spec("lm_eval") is None:
        fail("`--tax` needs the extra `lm-eval`: pip install 'lit-rlhf[lm-eval]'")
    arms = TAXED_ARMS if args.tax else ARMS
    results, taxes = {}, {}
    for seed in args.seeds:
        study = Study(args.runs / f"seed{seed}", seed, args.epochs, split=args.split, arms=arms)
        if not args.only_report:
            study.run()
        results[seed] = study.curves()
        if args.tax:
            taxes[seed] = study.tax(again=not args.only_report)
    (args.runs / "study.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    table = markdown(results, args.split)
    (args.runs / "study.md").write_text(table, encoding="utf-8")
    plot(results, args.runs / "curves.png")
    print(table)
    if taxes:
        (args.runs / "tax.md").write_text(tax_markdown(taxes), encoding="utf-8")
        print(tax_markdown(taxes))


class Study(Pipeline):
    """One seed of the study.

    Args:
        runs: Where the seed's runs go.
        seed: Seed of everything.
        epochs: PPO iterations.
        split: Held-out prompts that validation answers.
        arms: Titles of the PPO runs, by their folders.
    """

    threads_alone = 1

    def __init__(self, runs: Path, seed: int, epochs: int, *, split: str, arms: Mapping[str, str] = ARMS) -> None:
        super().__init__(runs, seed, epochs)
        self.split, self.arms = split, arms

    def run(self) -> None:
        """All stages; the arms side by side."""
        self.configs()
        self.data()
        for stage in ("pretrain", "sft", "reward"):
            self.train([stage])
        self.baseline()
        self.train(list(self.arms))

    def configs(self) -> None:
        """The shipped ones, with validation on the split; the arm with ptx is PPO-max in another folder."""
        super().configs()
        folder, root = self.runs / "configs", self.runs.as_posix()
        for arm in self.arms:
            shipped = "ppo_max" if arm == PTX else arm
            text = (folder / f"{shipped}.yaml").read_text(encoding="utf-8")
            text = text.replace(f"{root}/{shipped}\n", f"{root}/{arm}\n")
            text = text.replace("prompts_val", f"prompts_{self.split}")
            (folder / f"{arm}.yaml").write_text(text, encoding="utf-8")

    def command(self, *words: str, log: Path | None = None, threads: int = 1) -> Running:
        """Start a command; a fit of the arm with ptx has text in its updates."""
        if words[0] == "fit" and Path(words[2]).stem == PTX:
            text = (self.runs / "data" / "pretrain.jsonl").as_posix()
            words = (*words, "--data.ptx.files", f"[{text}]", "--model.loss.ptx_coef", str(PTX_COEF))
        return super().command(*words, log=log, threads=threads)

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
        for arm in self.arms:
            points = []
            for path in sorted((self.runs / arm / "evaluations").glob("val-step*.jsonl")):
                found = re.search(r"step(\d+)", path.name)
                assert found is not None
                policy = against_baseline(arm, read_answers(path), baseline, gold, grouping=grouping)
                points.append({"iteration": int(found[1]) // 2, **policy.to_dict()})
            out[arm] = points
        return out

    def tax(self, *, again: bool = True) -> dict[str, Any]:
        """What `lit-rlhf tax` measures of all models; ``again=False`` reads what it measured."""
        out = self.runs / "tax"
        if again:
            models = [f"{title}={self.model(stage)}" for stage, title in TAXED.items()]
            files = ["--text", str(self.runs / "data" / "text_test.jsonl")]
            files += ["--tasks", str(self.runs / "configs" / "facts.yaml"), "--out", str(out)]
            wait_for([self.command("tax", *models, *files, log=self.runs / "tax.log")])
        found: dict[str, Any] = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
        return found


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
            cells = [seed, TAXED_ARMS[arm], last["iteration"], f"{_rate(peak, 'all')} ({peak['iteration']})"]
            cells += [_rate(last, "all"), f"{fall:.1f}", _rate(last, "helpful"), _rate(last, "harmless")]
            cells += [f"{last['response_length']:.1f}", f"{last['kl']:.3f}"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def tax_markdown(taxes: Mapping[int, Mapping[str, Any]]) -> str:
    """One row a source and seed: the base model's mean, and every other's with its change from it."""
    models = list(TAXED.values())
    lines = [f"| seed | | {' | '.join(models)} |", "|---" * (2 + len(models)) + "|"]
    sources = range(len(next(iter(taxes.values()))["measurements"]))
    for place in sources:
        for seed, tax in taxes.items():
            measured = tax["measurements"][place]
            cells = [_taxed(measured, model) for model in models]
            lines.append(f"| {seed} | {measured['name']} ({measured['unit']}) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _taxed(measured: Mapping[str, Any], model: str) -> str:
    mean, change = f"{measured['values'][model]['mean']:.3f}", measured["changes"].get(model)
    if change is None:
        return mean
    return f"{mean} [{change['mean']:+.3f}: {change['low']:+.3f}, {change['high']:+.3f}]"


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
        for color, style, arm in (("#0072B2", "-", "ppo_max"), ("#D55E00", "--", "ppo_vanilla"), ("#009E73", ":", PTX)):
            for i, arms in enumerate(results.values()):
                points = arms.get(arm, [])
                label = f"{TAXED_ARMS[arm]} ({len(results)} seeds)" if i == 0 and points else None
                ax.plot([p["iteration"] for p in points], [value(p) for p in points], style, color=color, label=label)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("iteration")
        ax.grid(alpha=0.3)
    axes[0].axhline(50, color="black", linewidth=0.8)
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
