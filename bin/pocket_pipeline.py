"""All stages of the pocket world through the library's own command line: what `bash bin/quickstart` runs.

Every stage is one `lit-rlhf` command, printed before it runs, so that each can be repeated by hand.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

CONFIGS = Path(__file__).resolve().parent.parent / "configs" / "pocket"
BASELINE_SAMPLES = 4


def main() -> None:
    """Run every stage that is not done yet, then print where everything is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/pocket"), help="where everything is written")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, models, sampling and shuffles")
    parser.add_argument("--epochs", type=int, help="PPO iterations (default: the configs')")
    args = parser.parse_args()
    pipeline = Pipeline(args.runs, args.seed, args.epochs)
    try:
        pipeline.run()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted: the same command goes on from the last checkpoint")


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
        """Refuse a directory that another seed or number of iterations was run in: its results are not this run's."""
        path, own = self.runs / "run.json", {"seed": self.seed, "epochs": self.epochs}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found != own:
                sys.exit(f"{self.runs} was made with {found}, not {own}: use another --runs, or delete it")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(own), encoding="utf-8")

    def say(self, number: int, title: str) -> None:
        """Announce a stage."""
        print(f"\n[{number}/7] {title}", flush=True)

    # ---------------------------------------------------------------- stages

    def configs(self) -> None:
        """The shipped configs with this run's directory in them."""
        folder = self.runs / "configs"
        folder.mkdir(parents=True, exist_ok=True)
        for path in CONFIGS.glob("*.yaml"):
            text = path.read_text(encoding="utf-8").replace("runs/pocket", self.runs.as_posix())
            (folder / path.name).write_text(text, encoding="utf-8")

    def data(self) -> None:
        """The pocket world as files."""
        self.say(1, "pocket world")
        if not (self.runs / "data" / "base" / "config.json").exists():
            self.command("pocket", "make", str(self.runs / "data"), "--seed", str(self.seed)).check()

    def train(self, stages: list[str]) -> None:
        """Fit stages at the same time; only the first shows its progress."""
        started = time.perf_counter()
        todo = [stage for stage in stages if not self.done(stage)]
        threads = self.threads_alone if len(stages) == 1 else 1
        running = [self.fit(stage, quiet=stage != stages[0], threads=threads) for stage in todo]
        wait_for(running)
        self.trained += time.perf_counter() - started
        for stage in stages:
            print(f"{stage}: {'' if stage in todo else 'already '}done, {self.model(stage)}")

    def done(self, stage: str) -> bool:
        """Whether a stage has exported its model."""
        return (self.model(stage) / "config.json").exists()

    def model(self, stage: str) -> Path:
        """The Hugging Face folder a stage ends with."""
        return self.runs / stage / "export" / "final"

    def fit(self, stage: str, *, quiet: bool, threads: int) -> Command:
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
        """Table, plot and report."""
        names = {"SFT": "sft", "PPO-max": "ppo_max", "vanilla PPO": "ppo_vanilla"}
        named = [f"{name}={self.runs / 'test' / folder}" for name, folder in names.items()]
        self.command("compare", *named, "--out", str(self.runs / "results")).check()
        self.plot()
        report = self.runs / "report.html"
        runs = [str(self.runs / stage) for stage in ("ppo_max", "ppo_vanilla")]
        self.command("report", *runs, "--out", str(report)).check()
        print(f"\ntraining {self.trained:.0f} s, everything {time.perf_counter() - self.started:.0f} s. Look at:")
        for path in ("results.md", "results.json", "panels.png", "report.html", "ppo_max/export/final"):
            print(f"  {self.runs / path}")

    def plot(self) -> None:
        """The paper's four panels."""
        from lit_rlhf.reports.plots import plot_panels

        logs = {
            name: [joined_metrics(self.runs / stage)]
            for name, stage in (("PPO-max", "ppo_max"), ("vanilla PPO", "ppo_vanilla"))
        }
        plot_panels(logs, self.runs / "panels.png")

    # ---------------------------------------------------------------- commands

    def command(self, *words: str, log: Path | None = None, threads: int = 1) -> Command:
        """Start a `lit-rlhf` command."""
        print("lit-rlhf " + shlex.join(words), flush=True)
        return Command(words, log, threads)


def joined_metrics(run: Path) -> Path:
    """The metrics of a run and of what it was resumed as, one file; a later part replaces the iterations it repeats."""
    parts = sorted((run / "csv").glob("version_*"), key=lambda part: int(part.name.split("_")[1]))
    rows: dict[tuple[str, bool], dict[str, str]] = {}
    names: list[str] = []
    for part in parts:
        with (part / "metrics.csv").open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names += [name for name in reader.fieldnames or () if name not in names]
            rows.update({(row["step"], bool(row.get("val/score"))): row for row in reader})
    out = run / "metrics.csv"
    with out.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(sorted(rows.values(), key=lambda row: int(row["step"])))
    return out


def wait_for(commands: list[Command]) -> None:
    """Wait for all; as soon as one fails or Ctrl-C comes, none of the others is left behind."""
    running = list(commands)
    try:
        while running:
            for command in [command for command in running if command.process.poll() is not None]:
                command.check()
                running.remove(command)
            time.sleep(0.05)
    except BaseException:
        for command in commands:
            command.process.terminate()
        for command in commands:
            command.process.wait()
        raise


class Command:
    """A running `lit-rlhf` command.

    Args:
        words: Its arguments.
        log: Where its output goes instead of the terminal.
        threads: Threads of PyTorch, unless OMP_NUM_THREADS says otherwise.
    """

    def __init__(self, words: tuple[str, ...], log: Path | None, threads: int = 1) -> None:
        self.words, self.log = words, log
        out = None if log is None else log.open("w", encoding="utf-8")
        path = os.pathsep.join(map(str, sys.path))
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": path}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lit_rlhf", *words], stdout=out, stderr=subprocess.STDOUT if out else None,
            env=environment,
        )  # fmt: skip

    def check(self) -> None:
        """Wait; end the pipeline with the command's own last lines if it failed."""
        code = self.process.wait()
        if code:
            tail = "" if self.log is None else "\n".join(self.log.read_text(encoding="utf-8").splitlines()[-5:])
            sys.exit(f"{tail}\nfailed (exit code {code}): lit-rlhf {' '.join(self.words)}")


if __name__ == "__main__":
    main()
