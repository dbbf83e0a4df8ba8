"""The stages of `lit-rlhf pocket run`, each a `lit-rlhf` command in a process of its own.

Every command is printed before it runs, so that each stage can be repeated by hand.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import time
from pathlib import Path

from lit_rlhf.commands.config_files import shipped_configs
from lit_rlhf.commands.processes import Running, wait_for
from lit_rlhf.files import write_text
from lit_rlhf.user_errors import UserError

BASELINE_SAMPLES = 4
"""Responses of SFT to each test prompt: the opponents."""


class Pipeline:
    """The stages of one seed.

    Args:
        runs: Root of all run directories.
        seed: Seed of everything.
        epochs: PPO iterations, or None for the configs'.

    Attributes:
        threads_alone: Threads of a stage that runs by itself; stages side by side get one each.
    """

    threads_alone = 2

    def __init__(self, runs: Path, seed: int, epochs: int | None) -> None:
        self.runs, self.seed, self.epochs = runs, seed, epochs
        self.started = time.perf_counter()
        self.trained = 0.0

    def run(self) -> None:
        """All stages in order; PPO-max and vanilla PPO side by side."""
        self.same_run()
        self.configs()
        self.data()
        for number, (stage, title) in enumerate(
            [("pretrain", "pretraining"), ("sft", "supervised fine-tuning"), ("reward", "reward model")], start=2
        ):
            self.say(number, title)
            self.train([stage])
        self.say(5, "PPO-max and vanilla PPO, side by side")
        self.train(["ppo_max", "ppo_vanilla"])
        self.say(6, "answers of SFT, PPO-max and vanilla PPO to the test prompts")
        self.evaluate()
        self.say(7, "results")
        self.results()

    def same_run(self) -> None:
        """Refuse a directory that another seed or number of iterations was run in: its results are not this run's.

        Raises:
            UserError: It was.
        """
        path, own = self.runs / "run.json", {"seed": self.seed, "epochs": self.epochs}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found != own:
                raise UserError(f"{self.runs} was made with {found}, not {own}: use another --runs, or delete it.")
        write_text(path, json.dumps(own))

    def say(self, number: int, title: str) -> None:
        """Announce a stage."""
        print(f"\n[{number}/7] {title}", flush=True)  # noqa: T201

    # ---------------------------------------------------------------- stages

    def configs(self) -> None:
        """The shipped configs with this run's directory in them."""
        folder = self.runs / "configs"
        for path in (shipped_configs() / "pocket").glob("*.yaml"):
            text = path.read_text(encoding="utf-8").replace("runs/pocket", self.runs.as_posix())
            write_text(folder / path.name, text)

    def data(self) -> None:
        """The pocket world as files."""
        self.say(1, "pocket world")
        if not (self.runs / "data" / "base" / "config.json").exists():
            wait_for([self.command("pocket", "make", str(self.runs / "data"), "--seed", str(self.seed))])

    def train(self, stages: list[str]) -> None:
        """Fit stages at the same time; only the first shows its progress."""
        started = time.perf_counter()
        todo = [stage for stage in stages if not self.done(stage)]
        threads = self.threads_alone if len(stages) == 1 else 1
        running = [self.fit(stage, quiet=stage != stages[0], threads=threads) for stage in todo]
        wait_for(running)
        self.trained += time.perf_counter() - started
        for stage in stages:
            print(f"{stage}: {'' if stage in todo else 'already '}done, {self.model(stage)}")  # noqa: T201

    def done(self, stage: str) -> bool:
        """Whether a stage has exported its model."""
        return (self.model(stage) / "config.json").exists()

    def model(self, stage: str) -> Path:
        """The Hugging Face folder a stage ends with."""
        return self.runs / stage / "export" / "final"

    def fit(self, stage: str, *, quiet: bool, threads: int) -> Running:
        """Start one stage, from its last checkpoint if there is one."""
        words = ["fit", "--config", str(self.runs / "configs" / f"{stage}.yaml"), *self.seeds()]
        if self.epochs is not None and stage.startswith("ppo"):
            words += ["--trainer.max_epochs", str(self.epochs)]
        words += ["--ckpt_path", "last"]  # the newest whole checkpoint, or a fresh start
        return self.command(*words, log=self.runs / f"{stage}.log" if quiet else None, threads=threads)

    def seeds(self) -> list[str]:
        """Overrides that set every seed."""
        return ["--seed_everything", str(self.seed), "--data.seed", str(self.seed)]

    def evaluate(self) -> None:
        """Answers of each policy to the test prompts; SFT answers several times."""
        config = str(self.runs / "configs" / "ppo_max.yaml")
        common = ["test", "--config", config, *self.seeds(), "--trainer.logger", "false"]
        jobs = {
            "sft": ["--data.eval_samples", str(BASELINE_SAMPLES)],
            "ppo_max": ["--model.policy", str(self.model("ppo_max"))],
            "ppo_vanilla": ["--model.policy", str(self.model("ppo_vanilla"))],
        }
        running = []
        for name, words in jobs.items():
            root = self.runs / "test" / name
            if any((root / "evaluations").glob("test-*.jsonl")):
                continue
            reference = ["--model.reference.path", str(self.model("sft"))]
            words = [*common, *words, *reference, "--trainer.default_root_dir", str(root)]
            running.append(self.command(*words, log=self.runs / f"test-{name}.log"))
        wait_for(running)

    def results(self) -> None:
        """Table, picture and report."""
        names = {"SFT": "sft", "PPO-max": "ppo_max", "vanilla PPO": "ppo_vanilla"}
        named = [f"{name}={self.runs / 'test' / folder}" for name, folder in names.items()]
        judge = ["--config", str(self.runs / "configs" / "compare.yaml")]
        wait_for([self.command("compare", *judge, *named, "--out", str(self.runs / "results"))])
        pictures = ["panels.png"] if self.plot() else []
        report = self.runs / "report.html"
        runs = [str(self.runs / stage) for stage in ("ppo_max", "ppo_vanilla")]
        wait_for([self.command("report", *runs, "--out", str(report))])
        print(f"\ntraining {self.trained:.0f} s, everything {time.perf_counter() - self.started:.0f} s. Look at:")  # noqa: T201
        for path in ("results.md", "results.json", *pictures, "report.html", "ppo_max/export/final"):
            print(f"  {self.runs / path}")  # noqa: T201

    def plot(self) -> bool:
        """The paper's four panels; False, and a line that says why, without matplotlib."""
        from lit_rlhf.reports.plots import plot_panels

        logs = {
            name: [joined_metrics(self.runs / stage)]
            for name, stage in (("PPO-max", "ppo_max"), ("vanilla PPO", "ppo_vanilla"))
        }
        try:
            plot_panels(logs, self.runs / "panels.png")
        except ImportError as error:
            print(f"panels.png is left out. {error}")  # noqa: T201
            return False
        return True

    # ---------------------------------------------------------------- commands

    def command(self, *words: str, log: Path | None = None, threads: int = 1) -> Running:
        """Start a `lit-rlhf` command."""
        print("lit-rlhf " + shlex.join(words), flush=True)  # noqa: T201
        return Running(words, log, threads)


def joined_metrics(run: Path) -> Path:
    """The metrics of a run and of what it was resumed as, one file; a later part replaces the iterations it repeats."""
    # A run that was resumed after its last step has a version without metrics.
    files = (run / "csv").glob("version_*/metrics.csv")
    parts = sorted((file.parent for file in files), key=lambda part: int(part.name.split("_")[1]))
    rows: dict[tuple[str, bool], dict[str, str]] = {}
    names: list[str] = []
    for part in parts:
        with (part / "metrics.csv").open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names += [name for name in reader.fieldnames or () if name not in names]
            rows.update({(row["step"], bool(row.get("val/score"))): row for row in reader})
    out = run / "metrics.csv"
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(sorted(rows.values(), key=lambda row: int(row["step"])))
    write_text(out, text.getvalue())
    return out
