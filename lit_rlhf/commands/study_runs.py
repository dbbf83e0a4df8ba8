"""Running the tasks of a study: in order of need, several at a time, timed, each in a process of its own."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lit_rlhf.commands.config_files import shipped_config
from lit_rlhf.commands.processes import Running
from lit_rlhf.files import write_text
from lit_rlhf.jsonl import append_rows
from lit_rlhf.studies.plan import Study, Task, config, done, identity, words
from lit_rlhf.studies.results import seed_folder
from lit_rlhf.user_errors import UserError

TIMINGS = "timings.jsonl"
STEPS = "steps.json"
_LOOK = 0.2  # seconds between two looks at the running ones


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One that was started: its process, when, and whether from the beginning."""

    command: Running
    begun: float
    whole: bool


class Runs:
    """The runs of a study in its folder.

    Args:
        study: Checked.
        out: Its folder.
        jobs: Runs side by side.
        console: Where progress is told.
    """

    def __init__(self, study: Study, out: Path, *, jobs: int, console: Console) -> None:
        self.study, self.out, self.jobs, self.console = study, out, jobs, console

    # ---------------------------------------------------------------- what it costs

    def state(self, todo: Sequence[Task], *, each: bool = False) -> None:
        """Say how many runs are done, how many are to come, and about how long that takes."""
        left = [task for task in todo if not self.done(task)]
        for task in todo if each else ():
            minutes = self.minutes(task.name)
            told = "done" if task not in left else "unknown cost" if minutes is None else f"about {minutes:.1f} min"
            self.console.print(f"seed {task.seed}  {task.name}: {told}")
        self.console.print(f"{len(todo)} runs, {len(todo) - len(left)} done. To come: {self.cost(left)}.")

    def cost(self, left: Sequence[Task]) -> str:
        """Core-hours and the time on this many jobs, from what runs of the same step took, else from the YAML."""
        minutes = [self.minutes(task.name) for task in left]
        known = [each for each in minutes if each is not None]
        if left and not known:
            return f"{len(left)} runs, of which none was timed yet"
        unknown = f", and {len(left) - len(known)} runs that were never timed" if len(known) < len(left) else ""
        hours, wall = f"{sum(known) / 60:.1f} core-hours", _spoken(sum(known) / self.jobs)
        return f"about {hours}, {wall} with {self.jobs} job(s){unknown}"

    def minutes(self, name: str) -> float | None:
        """What a run of a step takes on one core: the median of those in this folder, else the YAML's."""
        found = [row["seconds"] / 60 for row in self._timings() if row["step"] == name and row["whole"]]
        return statistics.median(found) if found else self.study.step(name).minutes

    def _timings(self) -> list[dict[str, Any]]:
        path = self.out / TIMINGS
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    # ---------------------------------------------------------------- running

    def done(self, task: Task) -> bool:
        """Whether what the task makes is there."""
        return done(self.study, task, seed_folder(self.out, task.seed))

    def run(self, todo: Sequence[Task]) -> list[Task]:
        """Run what is not done; a failed run ends what needs it and nothing else.

        Returns:
            The failed ones.

        Raises:
            UserError: The folder holds runs of a step with other settings.
        """
        self._same_steps(todo)
        left = [task for task in todo if not self.done(task)]
        failed: list[Task] = []
        running: dict[Task, _Run] = {}
        try:
            while running or any(self._ready(task, running) for task in left):
                ready = [task for task in left if self._ready(task, running)]
                for task in ready[: self.jobs - len(running)]:
                    left.remove(task)
                    running[task] = self._start(task)
                for task in [task for task, run in running.items() if run.command.process.poll() is not None]:
                    self._ended(task, running.pop(task), failed=failed, left=[*left, *running])
                time.sleep(_LOOK)
        except BaseException:
            for run in running.values():
                run.command.process.terminate()
            for run in running.values():
                run.command.process.wait()
            raise
        return [*failed, *left]  # what is left needs what failed

    def _ready(self, task: Task, running: Mapping[Task, object]) -> bool:
        """Whether all that it needs is done, and no longer at work on it."""
        study, names = self.study, self.study.needed(task.name)
        if study.judging is not None and task.name in study.arms:
            names = [*names, study.judging.opponents]
        needs = [Task(seed=task.seed, name=name) for name in names]
        return all(self.done(each) and each not in running for each in needs)

    def _start(self, task: Task) -> _Run:
        here = seed_folder(self.out, task.seed)
        step = self.study.step(task.name)
        if step.config is not None:
            path = Path(step.config)
            path = path if path.suffix in (".yaml", ".yml") else shipped_config(step.config)
            content = config(self.study, task, path.read_text(encoding="utf-8"), here)
            write_text(here / "configs" / f"{task.name}.yaml", yaml.safe_dump(content, sort_keys=False))
        here.mkdir(parents=True, exist_ok=True)
        whole = not (here / task.name).exists()
        command = Running(words(self.study, task, here), here / f"{task.name}.log")
        return _Run(command=command, begun=time.monotonic(), whole=whole)

    def _ended(self, task: Task, run: _Run, *, failed: list[Task], left: Sequence[Task]) -> None:
        seconds = time.monotonic() - run.begun
        told = f"seed {task.seed}  {task.name}: {_spoken(seconds / 60)}"
        if self.done(task) and run.command.process.returncode == 0:
            row = {"seed": task.seed, "step": task.name, "seconds": round(seconds, 1), "whole": run.whole}
            append_rows(self.out / TIMINGS, [row])
        else:
            failed.append(task)
            told += f", FAILED: {_last_line(seed_folder(self.out, task.seed) / f'{task.name}.log')}"
        self.console.print(f"{told}. {len(left)} left: {self.cost(left)}", markup=False)

    def _same_steps(self, todo: Sequence[Task]) -> None:
        """Keep what each step is; refuse a folder in which one of the same name was another and left something.

        Raises:
            UserError: It did.
        """
        path = self.out / STEPS
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        kept = {name: step for name, step in kept.items() if self._left_something(name)}
        for name in dict.fromkeys(task.name for task in todo):
            own = identity(self.study, name)
            if kept.setdefault(name, own) != own:
                changed = sorted(key for key in own if own[key] != kept[name].get(key))
                raise UserError(
                    f"{self.out} holds runs of `{name}` with another {', '.join(f'`{key}`' for key in changed)}: give "
                    f"the step another name, use another `--out`, or delete {self.out}/seed*/{name} and its entry in "
                    f"{path}."
                )
        write_text(path, json.dumps(kept, indent=1))

    def _left_something(self, name: str) -> bool:
        """Whether any seed has a folder of the step, or what it makes: one that failed before that binds nobody."""
        if name not in dict(self.study.steps()):
            return True
        tasks = [Task(seed=seed, name=name) for seed in self.study.every_seed()]
        return any((seed_folder(self.out, task.seed) / name).exists() or self.done(task) for task in tasks)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def _spoken(minutes: float) -> str:
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes // 60:.0f} h {minutes % 60:.0f} min"
