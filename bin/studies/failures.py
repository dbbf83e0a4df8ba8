"""What a run looks like when it goes wrong: a healthy run and seven with one thing changed, drawn side by side.

    python bin/studies/failures.py --runs runs/failures --out docs/images/failures

``--pocket`` is a directory of `lit-rlhf pocket run`, made in RUNS/pocket where none is named: its SFT and reward model
are what all runs start from, and its PPO-max and vanilla PPO are the pair that shows reward hacking. Each other run is
`configs/pocket/ppo_max.yaml`, shorter, with the changes of ``FAILURES``. Finished runs are not run again; ``--only
NAME`` makes one. docs/reading-a-run.md shows the pictures.
"""

from __future__ import annotations

import argparse
import copy
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
WARMUP = 2
HEALTHY, HACKING = "healthy", "hacking"
BLUE, VERMILION, INK = "#0072B2", "#D55E00", "#7f7f7f"  # the ink reads on white and on the dark theme
STYLES = ((BLUE, "-"), (VERMILION, "--"))
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
VARIANCE = Panel(metric="update/explained_variance", title="Explained variance of the critic")
DRIFT = Panel(metric="update/ratio_drift", title="Ratio drift at the first update")
CLIPPED = Panel(metric="update/clip_fraction", title="Clip fraction")
DISTINCT = Panel(metric="rollout/distinct_4", title="Distinct 4-grams")
GRADIENT = Panel(metric="update/grad_norm", title="Gradient norm")
NO_KL = {"kl_controller.init_args.coef": 0.0}
PER_TOKEN = {
    "class_path": "LengthReward",
    "init_args": {
        "coef": 0.5,
        "longest": 1,
        "reward": {"class_path": "ModelReward", "init_args": {"path": "REWARD"}},
    },
}
FAILURES = {
    HEALTHY: Failure(tells=(GOLD, ENTROPY)),
    "kl": Failure(changes=NO_KL, tells=(GOLD, ENTROPY)),
    "length": Failure(changes={"reward": PER_TOKEN}, tells=(GOLD, ENTROPY)),
    "critic": Failure(changes={"critic.init": "policy", "optimizer.critic_lr": 1e-12}, tells=(VARIANCE, GOLD)),
    "hacking": Failure(changes={**NO_KL, "shaping.normalize": False, "shaping.clip": None}, tells=(GOLD, DISTINCT)),
    "entropy": Failure(changes={**NO_KL, "sampling.temperature": 0.5}, tells=(ENTROPY, DISTINCT)),
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
    trainer |= {"default_root_dir": run.as_posix(), "max_epochs": iterations, "check_val_every_n_epoch": 4}
    trainer |= {"limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer["callbacks"][0]["init_args"]["iterations"] = WARMUP
    for path, value in failure.changes.items():
        *parts, last = path.split(".")
        group = options
        for part in parts:
            group = group.setdefault(part, {})
        group[last] = copy.deepcopy(value)
    if failure.changes.get("reward") is PER_TOKEN:
        options["reward"]["init_args"]["reward"]["init_args"]["path"] = str(pocket / "reward" / "export" / "final")
    return found


def fit(name: str, pocket: Path, runs: Path, *, iterations: int, seed: int) -> None:
    """One run, unless it is there."""
    run = runs / name
    if name == HACKING or (run / "export" / "final").exists():
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
    if name == HACKING:
        return {"PPO-max": pocket / "ppo_max", "vanilla PPO": pocket / "ppo_vanilla"}
    return {HEALTHY: runs / HEALTHY} if name == HEALTHY else {HEALTHY: runs / HEALTHY, "this run": runs / name}


def draw(name: str, runs: Path, pocket: Path, out: Path) -> None:
    """Six panels: the healthy run and the one that fails; no paper, so that it lies on either theme."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = {label: metrics(run) for label, run in pair(name, runs, pocket).items()}
    figure = Figure(figsize=(9.0, 4.6), dpi=120, layout="constrained", facecolor="none")
    panels = (SCORE, LENGTH, KL, PERPLEXITY, *FAILURES[name].tells)
    for place, (ax, panel) in enumerate(zip(figure.subplots(2, 3).flatten(), panels, strict=True)):
        ax.set_facecolor("none")
        for (label, logged), (color, dash) in zip(lines.items(), STYLES, strict=False):
            points = {at: value for at, value in logged.get(panel.metric, {}).items() if math.isfinite(value)}
            ax.plot(list(points), list(points.values()), dash, color=color, linewidth=2.0, label=label)
        ax.set_title(panel.title, fontsize=10.5, color=INK)
        ax.tick_params(colors=INK, labelsize=9)
        ax.grid(color=INK, alpha=0.25, linewidth=0.6)
        for side, spine in ax.spines.items():
            spine.set(visible=side in ("left", "bottom"), color=INK)
        if place >= 3:
            ax.set_xlabel("iteration", color=INK)
        if place == 0:
            ax.legend(frameon=False, labelcolor=INK, fontsize=9)
    FigureCanvasAgg(figure)
    figure.savefig(out / f"{name}.png")


def table(runs: Path, pocket: Path) -> str:
    """Means of the last five iterations of every run (of the gold score its last value), a row each."""
    panels = (SCORE, GOLD, LENGTH, KL, PERPLEXITY, ENTROPY, DISTINCT, VARIANCE, CLIPPED, DRIFT, GRADIENT)
    lines = ["| run | " + " | ".join(f"`{panel.metric}`" for panel in panels) + " |", "|---" * (len(panels) + 1) + "|"]
    found = {name: runs / name for name in FAILURES if name != HACKING} | pair(HACKING, runs, pocket)
    for name, run in found.items():
        if not (run / "export" / "final").exists():
            continue
        logged = metrics(run)
        ends = [list(logged.get(panel.metric, {}).values())[-5:] for panel in panels]
        ends[1] = ends[1][-1:]
        cells = [f"{sum(end) / len(end):.3g}" if end else "" for end in ends]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/failures"))
    parser.add_argument("--pocket", type=Path, help="a finished `lit-rlhf pocket run`; default: made in RUNS/pocket")
    parser.add_argument("--out", type=Path, default=Path("runs/failures/images"))
    parser.add_argument("--iterations", type=int, default=14)
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
