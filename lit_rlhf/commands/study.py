"""`lit-rlhf study`: arms of an experiment over several seeds, side by side, resumable; figures and findings."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from lit_rlhf.commands.arguments import CommandParser
from lit_rlhf.commands.config_files import read_config, shipped_config
from lit_rlhf.commands.parsing import OneLineParser
from lit_rlhf.commands.study_runs import Runs
from lit_rlhf.studies.findings import Finding, findings
from lit_rlhf.studies.page import finding_cells, markdown_table, write_markdown, write_page
from lit_rlhf.studies.pictures import write_pictures
from lit_rlhf.studies.plan import Study, Task, done, tasks
from lit_rlhf.studies.results import measures_of, read_results, seed_folder, unlogged_qualities, write_table
from lit_rlhf.user_errors import UserError, fail

DESCRIPTION = """\
Run the arms of a study: every arm is a `lit-rlhf fit` of a config with a few options changed, once a seed; what arms
share (data, SFT, reward model) is made once a seed. As many runs side by side as there are cores. What it will cost is
said before the first one starts. The same command again runs what is missing, and resumes what was interrupted.
STUDY is a YAML file, or the name of one that ships: `lit-rlhf configs pocket/study` shows one with every key."""

EPILOG = """\
DIR then holds results.csv (a row a seed, arm, measure and iteration), study.md and study.html (figures and findings),
figure<N>.png and figure<N>-*.png (need matplotlib: pip install 'lit-rlhf[plots]'), and a folder a seed with every run
and its log.

Exit codes: 0 done; 1 a run failed (the others go on, its last lines are in its log); 2 an option cannot be used;
130 interrupted."""


def main(argv: Sequence[str]) -> None:
    """Run what is missing, then write what is known.

    Raises:
        UserError: The study or an option cannot be used, or DIR holds runs of other settings.
        SystemExit: 1 if a run failed.
        KeyboardInterrupt: After Ctrl-C; says how to go on.
    """
    options = _parser().parse_args(list(argv))
    study, name = read_study(options.study)
    out = options.out or Path("runs") / name
    console = Console(highlight=False, soft_wrap=True)
    todo = tasks(study, seeds=options.seeds, arms=options.arms)
    runs = Runs(study, out, jobs=options.jobs, console=console)
    if options.dry_run:
        runs.state(todo, each=True)
        return
    failed: list[Task] = []
    if not options.only_report:
        runs.state(todo)
        with _alone(out):
            try:
                failed = runs.run(todo)
            except KeyboardInterrupt:
                raise KeyboardInterrupt("interrupted: the same command resumes what was running") from None
    if not failed or read_results(study, out):
        _report(study, out, console, failed)
    if failed:
        logs = ", ".join(str(seed_folder(out, task.seed) / f"{task.name}.log") for task in failed)
        fail(f"{len(failed)} run(s) failed; the same command tries them again. Logs: {logs}", code=1)


def read_study(name: str) -> tuple[Study, str]:
    """The study of a YAML file, or of a shipped one by its name, and what its folder is called.

    Raises:
        UserError: There is none, it has an unknown key, or it contradicts itself.
    """
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else shipped_config(name)
    parser = OneLineParser(prog="lit-rlhf study")
    parser.add_argument("--study", type=Study)
    content = json.dumps(read_config(path))
    study: Study = parser.instantiate_classes(parser.parse_args(["--study", content])).study
    study.check()
    return study, path.stem


def _report(study: Study, out: Path, console: Console, failed: Sequence[Task]) -> None:
    results = read_results(study, out)
    if not results:
        raise UserError(f"{out} holds no finished arm yet: nothing to report.")
    found = findings(study, results)
    notes = [_what_ran(study, out), *(f"Failed: {study.title(task.name)}, seed {task.seed}." for task in failed)]
    measured = {measure for seeds in results.values() for run in seeds.values() for measure in run}
    if nowhere := sorted(measures_of(study) - measured):
        notes.append(f"No run has: {', '.join(nowhere)}.")
    notes += [f"No quality: {told}." for told in unlogged_qualities(study, results, out)]
    write_table(results, out / "results.csv", measures=measures_of(study))
    write_markdown(study, results, found, out, notes=notes)
    write_page(study, results, found, out, notes=notes)
    try:
        pictures = write_pictures(study, results, out)
    except ImportError as error:
        pictures = []
        console.print(f"No pictures. {error}")
    console.print("\n".join(notes), _told(study, found), sep="\n\n", markup=False)
    console.print(
        "Look at:", *(out / file for file in ("study.html", "study.md", "results.csv")), *pictures, sep="\n  "
    )


def _told(study: Study, found: Sequence[Finding]) -> str:
    """The findings on which something ran, by figure, and how many others there are."""
    known = [each for each in found if each.differences]
    parts = []
    for figure in dict.fromkeys(each.figure for each in known):
        claims = [each for each in known if each.figure == figure]
        parts.append(f"{figure}\n\n{markdown_table(*finding_cells(study, claims))}")
    if left := len(found) - len(known):
        parts.append(f"{left} claim(s) are about arms that have not run.")
    return "\n\n".join(parts) + "\n"


def _what_ran(study: Study, out: Path) -> str:
    ends = {
        name: [done(study, Task(seed=s, name=name), seed_folder(out, s)) for s in study.seeds_of(name)]
        for name in study.arms
    }
    missing = [f"{study.title(name)} ({sum(seeds)} of {len(seeds)})" for name, seeds in ends.items() if not all(seeds)]
    ran, all_of_them = sum(map(sum, ends.values())), sum(map(len, ends.values()))
    told = f"{ran} of {all_of_them} runs of {len(ends)} arms are done"
    return told + (f"; seeds done where some are missing: {', '.join(missing)}." if missing else ".")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One study at a time in a folder.

    Raises:
        UserError: Another one runs there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"`--out` ({out}): another `lit-rlhf study` runs there.") from None
        yield


def _parser() -> CommandParser:
    parser = CommandParser("study", DESCRIPTION, epilog=EPILOG)
    parser.add_argument("study", metavar="STUDY", help="YAML file, or the name of a shipped one: pocket/study")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/<name of the study>")
    parser.add_argument("--jobs", type=_positive, default=_cores(), help="runs side by side (default: one a core)")
    parser.add_argument("--seeds", type=int, nargs="+", help="these seeds alone")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="these arms alone, and what they need")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and what they cost; run nothing")
    parser.add_argument("--only-report", action="store_true", help="run nothing; tables and pictures of what is there")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
