"""Tasks of EleutherAI's `lm-eval` (extra `lm-eval`) on models in folders, document by document."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_rlhf.evaluation.tax import Sums


def task_sums(
    model: str, tasks: Sequence[str], *, device: str = "cpu", dtype: str = "float32", batch_size: int = 16
) -> dict[tuple[str, str], Sums]:
    """The first metric of every task, document by document.

    Args:
        model: Folder or hub name of a causal language model.
        tasks: YAML files of tasks, which may read local files; or names of the harness's own tasks, whose data the
            harness gets itself.
        device: Where the model is put.
        dtype: Of the weights.
        batch_size: Rows of a forward pass.

    Returns:
        By (task, metric).

    Raises:
        FileNotFoundError: A task's file does not exist.
        ValueError: The harness is not installed, does not know a task, or cannot run it.
    """
    simple_evaluate, manager = _harness()
    names, folders = _names(tasks)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # four progress bars a model
            found = simple_evaluate(
                model="hf",
                model_args={"pretrained": model, "dtype": dtype},
                tasks=names,
                task_manager=manager(include_path=folders, include_defaults=len(folders) < len(tasks)),
                device=device,
                batch_size=batch_size,
                bootstrap_iters=0,
            )
    except Exception as error:  # whatever a task's YAML and data make of the harness
        raise ValueError(f"`tasks` ({', '.join(tasks)}): lm-eval says {type(error).__name__}: {error}.") from error
    return {_first_metric(name, samples): _sums(name, samples) for name, samples in found["samples"].items()}


def _harness() -> tuple[Any, Any]:
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError("`tasks` needs the extra `lm-eval`: pip install 'lit-rlhf[lm-eval]'.") from None
    return simple_evaluate, TaskManager


def _names(tasks: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the tasks, and the folders of those that are files."""
    names, folders = [], []
    for task in tasks:
        if not task.endswith((".yaml", ".yml")):
            names.append(task)
            continue
        if not Path(task).is_file():
            raise FileNotFoundError(f"`tasks` ({task}) does not exist.")
        content = yaml.load(Path(task).read_text(encoding="utf-8"), Loader=_AnyTag)
        name = content.get("task") if isinstance(content, dict) else None
        if not isinstance(name, str):
            raise ValueError(f"`tasks` ({task}) is no task of lm-eval: it has no `task` with its name.")
        names.append(name)
        folders.append(str(Path(task).resolve().parent))
    return names, folders


class _AnyTag(yaml.SafeLoader):
    """Reads past the harness's own tags, such as ``!function``."""


_AnyTag.add_multi_constructor("!", lambda loader, suffix, node: None)


def _first_metric(task: str, samples: Sequence[dict[str, Any]]) -> tuple[str, str]:
    metrics = samples[0].get("metrics") if samples else None
    if not metrics:
        raise ValueError(f"`tasks` ({task}): lm-eval gave no document with a metric.")
    return task, str(metrics[0])


def _sums(task: str, samples: Sequence[dict[str, Any]]) -> Sums:
    _, metric = _first_metric(task, samples)
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return Sums(totals=[float(sample[metric]) for sample in ordered], weights=[1.0] * len(ordered))
