"""What a run looks like when it goes wrong: a healthy run beside seven that fail and one that only looks like it.

    python bin/studies/failures.py --runs runs/failures --out docs/images/failures

``--pocket`` is a directory of `lit-rlhf pocket run`, made in RUNS/pocket where none is named: its SFT and reward model
are what all runs start from, and its PPO-max and vanilla PPO are the pair that shows reward hacking and entropy
collapse. Each other run is `configs/pocket/ppo_max.yaml`, shorter, with the changes of ``FAILURES``. Finished runs are
not run again; ``--only NAME`` makes one. docs/reading-a-run.md shows the pictures.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lit_rlhf.commands.pocket_pipeline import Pipeline
from lit_rlhf.reports.plots import KL, LENGTH, PERPLEXITY, SCORE, Panel, Series, read_metrics
from lit_rlhf.rollout.transformers_engine import TransformersEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROOT = Path(__file__).resolve().parents[2]
WARMUP = 4
HEALTHY = "healthy"
LONG = ("hacking", "entropy")
BLUE, VERMILION, INK = "#0072B2", "#D55E00", "#7f7f7f"  # the ink reads on white and on the dark theme
STYLES = ((BLUE, "-"), (VERMILION, "--"))
NARROW_KL = Panel(metric=KL.metric, title="KL (nats per token)")
GOLD = Panel(metric="val/gold", title="Gold score, held-out")


class StaleEngine(TransformersEngine):
    """Draws from a copy of the policy that is renewed every ``every``-th time only, as if a weight sync was lost.

    Args:
        every: Syncs from one copy to the next; 0 keeps the first for good.
    """

    def __init__(self, every: int = 0) -> None:
        super().__init__(sampler_logprobs=True)
        self.every = every
        self.syncs = 0
        self.copy: PreTrainedModel | None = None

    def sync(self, policy: PreTrainedModel) -> None:
        """Keeps what it has, most times."""
        if self.copy is None or (self.every and self.syncs % self.every == 0):
            self.copy = copy.deepcopy(policy).requires_grad_(requires_grad=False)
        self.syncs += 1
        super().sync(self.copy)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One way to go wrong.

    Attributes:
        changes: Options of the module, by dotted path, that differ from the healthy run.
        tells: What is drawn beside the paper's four panels.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    tells: tuple[Panel, Panel]


ENTROPY = Panel(metric="rollout/entropy", title="Entropy (nats)")
VARIANCE = Panel(metric="update/explained_variance", title="Explained variance")
DRIFT = Panel(metric="update/ratio_drift", title="Ratio drift, first update")
CLIPPED = Panel(metric="update/clip_fraction", title="Clip fraction")
DISTINCT = Panel(metric="rollout/distinct_4", title="Distinct 4-grams")
VARIETY = Panel(metric="rollout/variety", title="Variety over prompts")
GRADIENT = Panel(metric="update/grad_norm", title="Gradient norm")
NO_KL = {"kl_controller.init_args.coef": 0.0}
REWARD = {"class_path": "ModelReward", "init_args": {"path": "REWARD"}}
PER_TOKEN = {"class_path": "LengthReward", "init_args": {"coef": 0.5, "longest": 1, "reward": REWARD}}
NO_CRITIC = {"critic.init": "policy", "optimizer.critic_lr": 1e-12}
FAILURES = {
    HEALTHY: Failure(tells=(GOLD, ENTROPY)),
    "no_penalty": Failure(changes=NO_KL, tells=(GOLD, ENTROPY)),
    "kl": Failure(changes={**NO_KL, "optimizer.lr": 1.5e-3}, tells=(GOLD, ENTROPY)),
    "length": Failure(changes={**NO_KL, "reward": PER_TOKEN, "optimizer.lr": 1e-3}, tells=(GOLD, ENTROPY)),
    "critic": Failure(changes=NO_CRITIC, tells=(VARIANCE, GOLD)),
    "hacking": Failure(tells=(GOLD, DISTINCT)),
    "entropy": Failure(tells=(ENTROPY, VARIETY)),
    "sampler": Failure(
        changes={"engine": {"class_path": "bin.studies.failures.StaleEngine"}, "loss.old_logprobs": "sampler"},
        tells=(DRIFT, CLIPPED),
    ),
    "rate": Failure(changes={"optimizer.lr": 1e-2}, tells=(CLIPPED, GRADIENT)),
}


def config(pocket: Path, run: Path, failure: Failure, iterations: int) -> dict[str, Any]:
    """The shipped PPO-max config, shorter, in another directory, with a failure's changes."""
    text = (ROOT / "configs" / "pocket" / "ppo_max.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text.replace("runs/pocket", pocket.as_posix()))
    trainer, options = found["trainer"], found["model"]["init_args"]
    trainer |= {"default_root_dir": run.as_posix(), "max_epochs": iterations, "check_val_every_n_epoch": 5}
    trainer |= {"limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer["callbacks"][0]["init_args"]["iterations"] = WARMUP
    model = (pocket / "reward" / "export" / "final").as_posix()
    for path, value in failure.changes.items():
        *parts, last = path.split(".")
        group = options
        for part in parts:
            group = group.setdefault(part, {})
        group[last] = json.loads(json.dumps(value).replace('"REWARD"', json.dumps(model)))
    return found


def fit(name: str, pocket: Path, runs: Path, *, iterations: int, seed: int) -> None:
    """One run, unless it is there."""
    run = runs / name
    if name in LONG or (run / "export" / "final").exists():
        return
    run.mkdir(parents=True, exist_ok=True)
    file = runs / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config(pocket, run, FAILURES[name], iterations)), encoding="utf-8")
    words = [
        "fit",
        "--config",
        str(file),
        "--seed_everything",
        str(seed),
        "--data.seed",
        str(seed),
        "--ckpt_path",
        "last",
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    print("lit-rlhf", *words, flush=True)
    with (runs / f"{name}.log").open("w", encoding="utf-8") as log:
        subprocess.run([sys.executable, "-m", "lit_rlhf", *words], env=env, stdout=log, stderr=log, check=True)


def metrics(run: Path) -> dict[str, Series]:
    """A run's metrics, the last part of a resumed one."""
    parts = sorted((run / "csv").glob("version_*"), key=lambda part: int(part.name.split("_")[1]))
    return read_metrics(parts[-1] / "metrics.csv")


def pair(name: str, runs: Path, pocket: Path) -> dict[str, Path]:
    """The runs of a picture: the one that goes well and the one that does not."""
    if name in LONG:
        return {"PPO-max": pocket / "ppo_max", "vanilla PPO": pocket / "ppo_vanilla"}
    return {HEALTHY: runs / HEALTHY} if name == HEALTHY else {HEALTHY: runs / HEALTHY, "this run": runs / name}


def draw(name: str, runs: Path, pocket: Path, out: Path) -> None:
    """The paper's four panels and two that tell: the healthy run and the one that fails.

    Two panels a row and large letters, so that a phone shows them; no paper, so that they lie on either theme.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = {label: metrics(run) for label, run in pair(name, runs, pocket).items()}
    figure = Figure(figsize=(7.2, 6.6), dpi=125, layout="constrained", facecolor="none")
    panels = (SCORE, LENGTH, NARROW_KL, PERPLEXITY, *FAILURES[name].tells)
    for place, (ax, panel) in enumerate(zip(figure.subplots(3, 2).flatten(), panels, strict=True)):
        ax.set_facecolor("none")
        for (label, logged), (color, dash) in zip(lines.items(), STYLES, strict=False):
            points = {at: value for at, value in logged.get(panel.metric, {}).items() if math.isfinite(value)}
            ax.plot(list(points), list(points.values()), dash, color=color, linewidth=2.4, label=label)
        ax.set_title(panel.title, fontsize=14, color=INK)
        ax.tick_params(colors=INK, labelsize=12)
        ax.locator_params(nbins=5)
        ax.grid(color=INK, alpha=0.25, linewidth=0.6)
        for side, spine in ax.spines.items():
            spine.set(visible=side in ("left", "bottom"), color=INK)
        if place >= len(panels) - 2:
            ax.set_xlabel("iteration", color=INK, fontsize=12)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, labelcolor=INK, fontsize=13)
    FigureCanvasAgg(figure)
    figure.savefig(out / f"{name}.png")


def table(runs: Path, pocket: Path) -> str:
    """Means of the last five iterations of every run (of the gold score its last value), a row each."""
    panels = (SCORE, GOLD, LENGTH, KL, PERPLEXITY, ENTROPY, DISTINCT, VARIANCE, CLIPPED, DRIFT, GRADIENT)
    lines = ["| run | " + " | ".join(f"`{panel.metric}`" for panel in panels) + " |", "|---" * (len(panels) + 1) + "|"]
    found = {name: runs / name for name in FAILURES if name not in LONG} | pair(LONG[0], runs, pocket)
    for name, run in found.items():
        if not (run / "export" / "final").exists():
            continue
        logged = metrics(run)
        ends = [list(logged.get(panel.metric, {}).values())[-5:] for panel in panels]
        ends[1] = ends[1][-1:]
        means = [sum(end) / len(end) if end else None for end in ends]
        cells = ["" if mean is None else "0" if abs(mean) < 1e-6 else f"{mean:.3g}" for mean in means]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/failures"))
    parser.add_argument("--pocket", type=Path, help="a finished `lit-rlhf pocket run`; default: made in RUNS/pocket")
    parser.add_argument("--out", type=Path, default=Path("runs/failures/images"))
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAILURES, nargs="+", help="these runs alone")
    args = parser.parse_args()
    pocket = args.pocket or args.runs / "pocket"
    if args.pocket is None:
        Pipeline(pocket, args.seed, None).run()
    for name in args.only or FAILURES:
        fit(name, pocket, args.runs, iterations=args.iterations, seed=args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only or FAILURES:
        if all((run / "export" / "final").exists() for run in pair(name, args.runs, pocket).values()):
            draw(name, args.runs, pocket, args.out)
    print(table(args.runs, pocket))


if __name__ == "__main__":
    main()
