"""What a study's YAML says: steps that every seed prepares, arms that are compared, figures and claims."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Literal

At = Literal["end", "peak", "fall", "mean", "early", "roughness"]
Expected = Literal["higher", "lower", "none"]

_NAME = re.compile(r"[\w.+-]+")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One `lit-rlhf` command, run once a seed. ``{here}`` in any text is the seed's folder, ``{seed}`` the seed.

    Attributes:
        config: Config to train with: a file, or the name of one that ships (`lit-rlhf configs`). The study's ``root``
            in it becomes the seed's folder, its run goes to ``{here}/<step's name>``.
        verb: What is done with the config.
        run: Another command instead, the words after ``lit-rlhf``.
        set: Options of the command by name, without dashes: ``{model.kl_controller.coef: 0.05}``.
        drop_callbacks: Callbacks of the config that are left out, by class name.
        needs: Steps that come first; ``None`` means the study's ``needs`` for an arm and the step above for a
            preparation.
        made: A path or pattern below ``{here}`` that is there when the step is done; by default the exported model of
            a ``fit``.
        minutes: What a run takes on one core, for the cost that is stated before anything was measured.
        title: What pages call it; its name by default.
        seeds: Seeds of this arm; ``None`` for the study's.
    """

    config: str | None = None
    verb: Literal["fit", "validate", "test"] = "fit"
    run: str | None = None
    set: dict[str, Any] = field(default_factory=dict)
    drop_callbacks: list[str] = field(default_factory=list)
    needs: list[str] | None = None
    made: str | None = None
    minutes: float | None = None
    title: str | None = None
    seeds: list[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How a run's evaluated answers are turned into a win rate.

    Attributes:
        opponents: The step whose saved answers are the other side.
        score: Column of the answers' rows that decides.
        tie_margin: Differences up to it tie.
        cluster_by: Columns of the prompts' records that belong together.
        split_by: Column of the prompts' group; None for one group.
    """

    opponents: str
    score: str
    tie_margin: float = 0.0
    cluster_by: list[str] = field(default_factory=list)
    split_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One finding to be tested: an arm against another one, within seed.

    Attributes:
        says: What is claimed, in words.
        arm: The arm it is about.
        against: The arm it is compared with.
        measure: Of the runs: ``win`` (percent over the opponents, ties half), ``win/<group>``, or a logged metric.
        at: What of the curve: its ``end`` (mean of the last tenth), ``peak``, ``fall`` (from peak to end), ``mean``,
            ``early`` (mean of the first quarter), ``roughness`` (mean step between neighbors).
        expected: Whether the arm's is claimed to be higher, lower, or no different.
        margin: Differences up to it are none, in the measure's unit.
    """

    says: str
    arm: str
    against: str
    measure: str = "win"
    at: At = "end"
    expected: Expected = "higher"
    margin: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One number of an arm's curve over how good something is that the arm was given, such as its reward model.

    Attributes:
        steps: The preparation that made it, by arm.
        x: What that step logged; its last value is the horizontal axis.
        y: The arm's measure.
        at: What of the measure's curve; see :class:`Claim`.
        label: What the horizontal axis is called; ``x`` by default.
    """

    steps: dict[str, str]
    x: str
    y: str
    at: At = "peak"
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A panel of curves and the claims that go with it.

    Attributes:
        title: Its heading.
        arms: The arms in it, at most seven.
        panels: Measures, a chart each.
        frontier: Also draw the second measure against the square root of the first one, with Gao et al.'s fit.
        distributions: Also draw the scores over time of every arm's first seed.
        quality: Also draw one number an arm and seed over the quality of what the arm was given.
        claims: What is tested.
    """

    title: str
    arms: list[str]
    panels: list[str] = field(default_factory=lambda: ["win", "val/score", "val/response_length", "val/kl"])
    frontier: list[str] = field(default_factory=list)
    distributions: bool = False
    quality: Quality | None = None
    claims: list[Claim] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Study:
    """The whole of it.

    Attributes:
        seeds: Of the runs; every seed has a folder ``seed<N>``.
        arms: What is compared, by name.
        prepare: Steps before the arms, by name, in this order.
        set: Options of every arm, under its own.
        needs: Preparations that an arm needs if it names none; all by default.
        root: The folder that configs write into; in each seed's copy it is the seed's folder.
        judging: How answers become win rates; None where logged metrics are enough.
        figures: What is drawn and tested.
    """

    seeds: list[int]
    arms: dict[str, Step]
    prepare: dict[str, Step] = field(default_factory=dict)
    set: dict[str, Any] = field(default_factory=dict)
    needs: list[str] | None = None
    root: str = ""
    judging: Judging | None = None
    figures: list[Figure] = field(default_factory=list)

    def check(self) -> None:
        """Everything that can be known before a run starts.

        Raises:
            ValueError: A name is unknown or used twice, a step says nothing or too much, or steps need each other.
        """
        if not self.seeds or not self.arms:
            raise ValueError("A study needs `seeds` and `arms`.")
        self._check_seeds()
        if twice := sorted(self.prepare.keys() & self.arms.keys()):
            raise ValueError(f"`prepare` and `arms` both have {twice[0]!r}: each step needs a name of its own.")
        for name, step in self.steps():
            _check_step(name, step)
            for other in self.needed(name):
                self._known(other, self.prepare, f"`{name}.needs`")
        if self.judging is not None:
            self._known(self.judging.opponents, self.prepare, "`judging.opponents`")
        self._check_figures()
        try:
            TopologicalSorter({name: self.needed(name) for name in self.prepare}).prepare()
        except CycleError as error:
            raise ValueError(f"`prepare`: {' needs '.join(error.args[1])}.") from None

    def _check_seeds(self) -> None:
        for name, seeds in {
            "seeds": self.seeds,
            **{f"{name}.seeds": self.seeds_of(name) for name in self.arms},
        }.items():
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"`{name}` ({', '.join(map(str, seeds))}) names a seed twice.")

    def _check_figures(self) -> None:
        for figure in self.figures:
            if len(figure.frontier) not in (0, 2):
                raise ValueError(f"figure {figure.title!r}: `frontier` needs two measures, a distance and a score.")
            for arm in [*figure.arms, *(x for claim in figure.claims for x in (claim.arm, claim.against))]:
                self._known(arm, self.arms, f"figure {figure.title!r}")
            if figure.quality is not None:
                self._check_quality(figure.quality, figure)
        titles = [figure.title for figure in self.figures]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise ValueError(f"`figures` has two of the title {twice[0]!r}: findings are told by it.")

    def _check_quality(self, quality: Quality, figure: Figure) -> None:
        place = f"figure {figure.title!r}: `quality.steps`"
        if not quality.steps:
            raise ValueError(f"{place} names no arm.")
        for arm, step in quality.steps.items():
            self._known(arm, figure.arms, place)
            self._known(step, self.prepare, place)

    def steps(self) -> Iterator[tuple[str, Step]]:
        """Preparations, then arms."""
        yield from self.prepare.items()
        yield from self.arms.items()

    def step(self, name: str) -> Step:
        """By its name."""
        return self.prepare[name] if name in self.prepare else self.arms[name]

    def needed(self, name: str) -> list[str]:
        """The steps that must be done before this one starts."""
        step, before = self.step(name), list(self.prepare)
        if step.needs is not None:
            return step.needs
        if name in self.arms:
            return before if self.needs is None else self.needs
        return before[: before.index(name)][-1:]

    def options(self, name: str) -> dict[str, Any]:
        """What a step changes in its config."""
        own = self.step(name).set
        return {**self.set, **own} if name in self.arms else own

    def title(self, name: str) -> str:
        """What pages call a step."""
        return self.step(name).title or name

    def seeds_of(self, name: str) -> list[int]:
        """The seeds that an arm runs with."""
        found = self.step(name).seeds
        return self.seeds if found is None else found

    def every_seed(self) -> list[int]:
        """The seeds that some arm runs with, ascending."""
        return sorted({seed for name in self.arms for seed in self.seeds_of(name)})

    @staticmethod
    def _known(name: str, known: Iterable[str], place: str) -> None:
        if name not in known:
            raise ValueError(f"{place} names {name!r}, which is none of {', '.join(known)}.")


@dataclass(frozen=True, kw_only=True, order=True)
class Task:
    """One step of one seed."""

    seed: int
    name: str


def tasks(study: Study, *, seeds: Sequence[int] | None = None, arms: Sequence[str] | None = None) -> list[Task]:
    """What is to be run, seed by seed: an arm's preparations before it, and none that no arm needs.

    Args:
        study: Checked.
        seeds: These seeds alone.
        arms: These arms alone.

    Raises:
        ValueError: An arm is unknown, or no run is left.
    """
    for name in arms or ():
        Study._known(name, study.arms, "`--arms`")
    out: dict[Task, None] = {}
    every = study.every_seed()
    if unknown := sorted(set(seeds or ()) - set(every)):
        raise ValueError(f"`--seeds` names {unknown[0]}, which no arm has; the seeds are {', '.join(map(str, every))}.")
    for seed in every if seeds is None else seeds:
        for name in study.arms if arms is None else arms:
            if seed in study.seeds_of(name):
                out |= dict.fromkeys(Task(seed=seed, name=each) for each in [*_before(study, name), name])
    if not out:
        raise ValueError("`--seeds` and `--arms` leave nothing to run.")
    return list(out)


def _before(study: Study, name: str) -> list[str]:
    found: dict[str, None] = {}
    for other in study.needed(name):
        found |= dict.fromkeys([*_before(study, other), other])
    if study.judging is not None and name in study.arms and study.judging.opponents not in found:
        opponents = study.judging.opponents
        found |= dict.fromkeys([*_before(study, opponents), opponents])
    return list(found)


def words(study: Study, task: Task, here: Path) -> list[str]:
    """The command of a task, after ``lit-rlhf``.

    Args:
        study: Of which it is a task.
        task: The step and its seed.
        here: The seed's folder.
    """
    step, filled = study.step(task.name), {"{here}": here.as_posix(), "{seed}": str(task.seed)}
    if step.config is not None:
        written = here / "configs" / f"{task.name}.yaml"
        out = [step.verb, "--config", written.as_posix()]
        out += ["--seed_everything", str(task.seed), "--data.seed", str(task.seed)]
        out += ["--ckpt_path", "last"] if step.verb == "fit" else []
    else:
        out = (step.run or "").split()
    for key, value in study.options(task.name).items():
        out += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    return [_filled(word, filled) for word in out]


def done(study: Study, task: Task, here: Path) -> bool:
    """Whether what the task makes is there."""
    step = study.step(task.name)
    made = step.made or f"{task.name}/export/final/config.json"
    return any(here.glob(_filled(made, {"{here}/": "", "{seed}": str(task.seed)})))


def config(study: Study, task: Task, text: str, here: Path) -> dict[str, Any]:
    """The config of a seed's run: the shipped or written one in the seed's folder, without the dropped callbacks.

    Raises:
        ValueError: A callback to drop is not there.
    """
    import yaml

    step = study.step(task.name)
    if study.root:
        text = text.replace(study.root, here.as_posix())
    found: dict[str, Any] = yaml.safe_load(text)
    trainer = found.setdefault("trainer", {})
    trainer["default_root_dir"] = (here / task.name).as_posix()
    callbacks = trainer.get("callbacks") or []
    for name in step.drop_callbacks:
        kept = [each for each in callbacks if each["class_path"].rpartition(".")[2] != name]
        if len(kept) == len(callbacks):
            raise ValueError(f"`{task.name}.drop_callbacks`: {step.config} has no callback {name}.")
        callbacks = trainer["callbacks"] = kept
    return found


def identity(study: Study, name: str) -> dict[str, Any]:
    """What makes a step's runs its own; a step with another identity is another experiment."""
    step = study.step(name)
    kept = {f.name: getattr(step, f.name) for f in fields(step) if f.name not in ("minutes", "title", "seeds", "needs")}
    kept["set"] = study.options(name)
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def _check_step(name: str, step: Step) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a step: it is a folder's, of letters, digits, `_`, `-`, `.` and `+`.")
    if (step.config is None) == (step.run is None):
        raise ValueError(f"`{name}` needs `config` or `run` (a command), one of them.")
    if (step.run is not None or step.verb != "fit") and step.made is None:
        raise ValueError(f"`{name}` needs `made`: what is there when `{step.run or step.verb}` is done?")
    if step.config is not None and step.verb == "fit" and "ckpt_path" in step.set:
        raise ValueError(
            f"`{name}.set`: a `fit` resumes from its own last checkpoint; `ckpt_path` is for another `verb`."
        )
    if step.run is not None and (step.drop_callbacks or step.verb != "fit"):
        raise ValueError(f"`{name}`: `drop_callbacks` and `verb` are for a `config`.")
    for place in re.findall(r"\{(\w+)\}", f"{step.run} {step.made}"):
        if place not in ("here", "seed"):
            raise ValueError(f"`{name}`: {{{place}}} stands for nothing; there are {{here}} and {{seed}}.")


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text
