"""Over two hundred first tries of a stranger, right and wrong ones, and how each ends.

    python -m tests.soak.trials                 # all of them
    python -m tests.soak.trials --every 5       # each fifth

Through the entry point of the console script: a command line and, where it must be refused, words that its one line
must have. A try **works** (exit code 0, as it should), is refused in **one line** that has those words, in a
**misleading** way (another line, or several), with a **traceback**, or is **silent**: it works though it must not.
Those in Python are in `tests.soak.python_trials`. Exit code 1 if there is any of the last three kinds.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml

from lit_rlhf.cli import main as lit_rlhf
from tests.command_line import ppo_config
from tests.soak import python_trials

WORKS = ""
FIT = "fit --config {c}"

SHOWN = [  # what a config may say; `--print_config` is added
    "--trainer.max_epochs 3",
    "--trainer.max_epochs null",
    "--trainer.precision bf16-mixed",
    "--trainer.precision 32-true",
    "--trainer.strategy ddp",
    "--trainer.devices 2",
    "--trainer.callbacks+ KLMonitor",
    "--trainer.callbacks+ ResponseLengthMonitor",
    "--trainer.callbacks+ RichProgressBar",
    "--trainer.callbacks+ lightning.pytorch.callbacks.LearningRateMonitor",
    "--trainer.logger false",
    "--model.shaping.normalize true",
    "--model.optimizer.lr 1e-5",
    "--model.shaping.clip null",
    "--model.shaping.clip None",
    "--model.reference null",
    "--model.critic null",
    "--model.sampling.temperature 0.7",
    "--model.sampling.top_p 0.9",
    "--model.reward LengthReward",
    "--model.policy_loss KLPenaltySurrogate",
    "--data.minibatch_size 2",
    "--data.ppo_epochs 2",
    "--data.columns '{{prompt: question}}'",
    "--data.cache true",
    "--data.cache_dir somewhere",
    "--data.val {w}/prompts.jsonl",
    "--data.eval_samples 2",
    "--data.max_prompt_length 16",
    "--seed_everything 5",
]
REFUSED: list[tuple[str, str]] = [  # after FIT
    ("--trainer.max_epoch 3", "max_epochs"),
    ("--trainer.max_epochs many", "max_epochs"),
    ("--trainer.precision half", "precision"),
    ("--trainer.strategy ddpp", "ddpp"),
    ("--trainer.strategy fsdp", "lit_deepspeed_stage_2"),
    ("--trainer.strategy deepspeed_stage_3", "lit_deepspeed_stage_2"),
    ("--trainer.accelerator gpu", "gpu"),
    ("--trainer.devices many", "devices"),
    ("--trainer.devices -3", "devices"),
    ("--trainer.barebones true", "barebones"),
    ("--trainer.accumulate_grad_batches 2", "minibatch_size"),
    ("--trainer.gradient_clip_val 1", "max_grad_norm"),
    ("--trainer.default_root_dir {w}/prompts.jsonl", "prompts.jsonl"),
    ("--trainer.callbacks+ KLMonitr", "KLMonitor"),
    ("--trainer.callbacks+ my_module.Mine", "my_module"),
    ("--trainer.logger lightning.pytorch.loggers.CometLogger", "comet"),
    ("--trainr.devices 1", "trainer"),
    ("--modl x", "model"),
    ("--lr_scheduler StepLR", "lr_scheduler"),
    ("--optimizer Adam", "optimizer"),
    ("--model PPOModul", "PPOModule"),
    ("--model.polcy x", "policy"),
    ("--model.policy nowhere", "nowhere"),
    ("--model.policy {w}/prompts.jsonl", "prompts.jsonl"),
    ("--model.kl_coef 0.1", "kl_coef"),
    ("--model.loss.vf_coef -1", "vf_coef"),
    ("--trainer.callbacks+ lightning.pytorch.callbacks.Timer --print_config", "YAML cannot say"),
    ("--model.optimizer.lr -1e-4", "lr"),
    ("--model.optimizer.weight_decy 0.1", "weight_decay"),
    ("--model.sampling 0.8", "sampling"),
    ("--model.sampling.temperature -1", "temperature"),
    ("--model.sampling.top_p 2", "top_p"),
    ("--model.sampling.max_response_length 0", "max_response_length"),
    ("--model.sampling.max_response_length 100000", "100000"),
    ("--model.reward ModlReward", "ModelReward"),
    ("--model.reward.path nowhere", "nowhere"),
    ("--model.shaping.clp 1", "clip"),
    ("--model.loss.clip_rage 1", "`clip_range` is an option of ClippedSurrogate"),
    ("--model.optimiser.lr 1", "Did you mean: optimizer"),
    ("--model.model.adapter.rank 8", "AdapterConfig has no option `rank`"),
    ("--model.help", "needs a class"),
    ("--model.kl_controller.coef 1", "kl_controller"),
    ("--model.policy_loss ClipedSurrogate", "ClippedSurrogate"),
    ("--model.model.pad_token nothing", "pad_token"),
    ("--model.estimator Gae", "Gae"),
    ("--data.batch_size 8", "minibatch_size"),
    ("--data.minibatch_size 3", "minibatch_size"),
    ("--data.minibatch_size 0", "minibatch_size"),
    ("--data.rollout_batch_size 1000000", "rollout_batch_size"),
    ("--data.train nowhere.jsonl", "nowhere.jsonl"),
    ("--data.train {t}/empty.jsonl", "empty.jsonl"),
    ("--data.train {t}/broken.jsonl", "broken.jsonl"),
    ("--data.train {t}/notes.txt", "files are read that end in"),
    ("--data.train {t}/numbers.jsonl", "format not recognized"),
    ("--data.train {t}/bad.parquet", "bad.parquet"),
    ("--data.train {t}/questions.csv", "format not recognized"),
    ("--data.columns '{{promt: question}}'", "Did you mean prompt"),
    ("--data.columns '{{question: prompt}}'", "The other way round"),
    ("--data.columns '{{prompt: nothing}}'", "nothing"),
    ("--data.columns question", "columns"),
    ("--data.template hhh", "template"),
    ("--data.format hh", "No usable row"),
    ("--data.format jsonl", "`format` ('jsonl') must be one of"),
    ("--data.max_prompt_length 0", "max_prompt_length"),
    ("--data.cache maybe", "cache"),
    ("--data.ptx.files []", "ptx.files"),
    ("--data.on_bad_row stop", "on_bad_row"),
    ("--ckpt_path nowhere.ckpt", "nowhere.ckpt"),
    ("--config nowhere.yaml", "nowhere.yaml"),
    ("--config {t}/twice.yaml", "stands twice"),
    ("--config {t}/empty.yaml", "empty"),
    ("--config {t}/utf16.yaml", "UTF-8"),
    ("--config {t}/list.yaml", "mapping"),
    ("--config preset:ppo_mx", "ppo_max"),
]
OTHERS: list[tuple[str, str]] = [
    ("--help", WORKS),
    ("--version", WORKS),
    ("fit --help", WORKS),
    ("configs", WORKS),
    ("configs ppo_max", WORKS),
    ("configs ppomax", "ppo_max"),
    ("data check {t}/questions.csv --columns prompt=question", WORKS),
    ("data check {t}/questions.csv --columns prompt=question completion=answer --kind sft", WORKS),
    ("data check {t}/sharegpt.jsonl", WORKS),
    ("data check {t}/alpaca.jsonl", WORKS),
    ("data check {w}/prompts.jsonl --tokenizer {w}/policy", WORKS),
    ("data check nowhere.jsonl", "nowhere.jsonl"),
    ("data check {t}/questions.csv --columns prompt", "OURS=THEIRS"),
    ("data check {t}/questions.csv", "not recognized"),
    ("data check {t}/empty", "holds no data file"),
    ("data chek x", "data check"),
    ("plan --config nowhere.yaml", "nowhere.yaml"),
    ("plan --config {c}", WORKS),
    ("plan --config {c} --memory 80", "80GB"),
    ("report nowhere", "nowhere"),
    ("export nowhere out", "nowhere"),
    ("export {c} out", "config.yaml' is no torch checkpoint"),
    ("score --model {w}/reward nowhere.jsonl", "nowhere.jsonl"),
    ("score {w}/prompts.jsonl", "--model"),
    ("compare a=x.jsonl b=y.jsonl", "--judge"),
    ("compare a=x.jsonl b=y.jsonl --judge gold", "--judge ScoreJudge --judge.score gold"),
    ("pocket", "pocket run"),
    ("pocket run --epochs 0", "--epochs"),
    ("fitt", "fit"),
]


def trials() -> list[tuple[str, str]]:
    """Every command line, and what its one line must say; nothing where it must work."""
    shown = [(f"{FIT} {words} --print_config", WORKS) for words in SHOWN]
    return [*shown, *((f"{FIT} {words}", told) for words, told in REFUSED), *OTHERS]


def prepare(folder: Path, world: Path) -> dict[str, Path]:
    """The files that the command lines name."""
    rows = [{"question": f"q{i}", "answer": "a"} for i in range(4)]
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    texts = {
        "broken.jsonl": "no json\n",
        "notes.txt": "just words\n",
        "empty.jsonl": "",
        "numbers.jsonl": "1\n2\n",
        "bad.parquet": "no parquet",
        "questions.csv": "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in rows),
        "sharegpt.jsonl": json.dumps({"conversations": talk}) + "\n",
        "alpaca.jsonl": json.dumps({"instruction": "Add.", "input": "1 2", "output": "3"}) + "\n",
        "twice.yaml": "trainer: {max_epochs: 1}\ntrainer: {max_epochs: 2}\n",
        "empty.yaml": "",
        "list.yaml": "- a\n",
        "config.yaml": yaml.safe_dump(ppo_config(world, folder / "run")),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "utf16.yaml").write_text("trainer: {}\n", encoding="utf-16")
    (folder / "empty").mkdir()
    return {"t": folder, "w": world, "c": folder / "config.yaml"}


def attempt(line: str, told: str) -> tuple[str, str]:
    """How a command line ends, and its last words on stderr."""
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            lit_rlhf(shlex.split(line))
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        return "traceback", traceback.format_exc().strip().splitlines()[-1]
    lines = err.getvalue().splitlines()
    last = lines[-1] if lines else ""
    if "Traceback" in err.getvalue():
        return "traceback", last
    if code in (0, None):
        return ("silent" if told else "works"), last
    own = [word for word in lines if word.startswith("lit-rlhf: ")]
    told_of_rows = [word for word in lines if "refused rows" in word]  # the note where those of the data are
    alone = own == [last] and len(lines) == 1 + len(told_of_rows) and len(last) < 1200
    right = bool(told) and told in last and alone
    return ("one line" if right else "misleading"), last


def check(every: int, folder: Path, world: Path) -> Iterator[tuple[str, str, str]]:
    """Command line, kind and last words of every n-th try."""
    places = prepare(folder, world)
    with contextlib.chdir(folder) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        for line, told in trials()[::every]:
            yield line, *attempt(line.format(**places), told)


def check_python(every: int, folder: Path, world: Path) -> Iterator[tuple[str, str, str]]:
    """The same of every n-th try in Python."""
    silence = io.StringIO()
    known: dict[str, object] = {}
    with contextlib.chdir(folder) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        for source, told in python_trials.TRIES[::every]:
            with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
                known = known or python_trials.names(folder, world)
                found = python_trials.attempt(source, told, known)
            yield source, *found


def main() -> None:
    """Try, count, show what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1)
    every = parser.parse_args().every
    from tests.modules.tiny_ppo import write_world

    counts: Counter[str] = Counter()
    for name, tries in (("command line", check), ("Python", check_python)):
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            found = []
            for line, kind, last in tries(every, folder, write_world(folder / "world")):
                found.append(kind)
                if kind not in ("works", "one line"):
                    print(f"{kind}: {line}\n    {last}", flush=True)
        told = ", ".join(f"{n} {kind}" for kind, n in Counter(found).most_common())
        print(f"{len(found)} tries, {name}: {told}", flush=True)
        counts.update(found)
    sys.exit(bool(counts.keys() - {"works", "one line"}))


if __name__ == "__main__":
    main()
