"""A short form of the soak of memory: files and threads of a run stay as many; growth is seen where there is some."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import ppo_config, run, write_config
from tests.soak.memory import Held, growth, read

FLAT = [Held(i, 500.0 + i % 3, 12, 4) for i in range(20)]


def test_a_run_opens_no_file_and_no_thread_more_while_it_goes_on(world: Path, tmp_path: Path) -> None:
    config = ppo_config(world, tmp_path / "run")
    meter = {"class_path": "tests.soak.memory.Meter", "init_args": {"path": str(tmp_path / "held")}}
    samples = {"class_path": "SampleLogger", "init_args": {"every_n_iterations": 1}}
    config["trainer"] |= {"max_epochs": 6, "callbacks": [meter, samples]}
    config["data"]["init_args"] |= {"val": str(world / "prompts.jsonl"), "eval_limit": 4}
    run("fit", "--config", write_config(tmp_path / "config.yaml", config))
    series = read(tmp_path / "held")
    assert [entry.iteration for entry in series] == list(range(6))
    assert len({entry.files for entry in series[2:]}) == 1
    assert len({entry.threads for entry in series[2:]}) == 1


def test_what_does_not_grow_is_let_be() -> None:
    assert growth(FLAT) == []
    assert growth([entry._replace(resident=100.0 + i) for i, entry in enumerate(FLAT[:4])] + FLAT[4:]) == []


@pytest.mark.parametrize(
    ("leak", "told"),
    [
        (lambda i, held: held._replace(resident=held.resident + i), "memory from"),
        (lambda i, held: held._replace(files=12 + i // 4), "files from 13 to 16"),
        (lambda i, held: held._replace(threads=4 + (i > 15)), "threads from 4 to 5"),
    ],
)
def test_growth_is_seen(leak, told) -> None:  # type: ignore[no-untyped-def]
    (found,) = growth([leak(i, held) for i, held in enumerate(FLAT)])
    assert found.startswith(told)
