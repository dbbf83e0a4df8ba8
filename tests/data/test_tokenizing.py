"""Token ids from the cache are those of memory; what is stale, half written or cannot be written is not used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from lit_rlhf.data import token_cache, tokenizing
from lit_rlhf.data.arrow_rows import ArrowRows
from lit_rlhf.data.encoding import EncodedRow, PairEncoder, PromptEncoder, RowEncoder, TextEncoder
from lit_rlhf.data.token_cache import Tokenized
from lit_rlhf.data.tokenizing import CacheConfig, tokenize
from tests.data.fixtures import hh, make_tokenizer

ENCODERS: dict[str, RowEncoder] = {
    "pairs": PairEncoder("hh", 95),
    "texts": TextEncoder("hh", 30),
    "prompts": PromptEncoder("hh", 60),
}


def rows(kind: str) -> list[Any]:
    """Good rows, broken ones, too long ones and such that lose old turns."""
    old = hh("an old question?", "an old answer.")
    out: list[Any] = [{"n": [1, {"a": None}], "é": "ü\u2028", "f": 0.1} for _ in range(40)]
    for i, row in enumerate(out):
        if kind == "texts" and i % 2:
            row["text"] = "word " * i
        elif kind == "prompts":
            row["prompt"] = (old if i % 5 == 4 else "") + f"\n\nHuman: Q{i}" + "?" * (i % 7 * 12) + "\n\nAssistant:"
        else:
            prompt = (old if i % 5 == 4 else "") + f"\n\nHuman: Q{i // 3}" + "?" * (i % 7 * 12)
            row |= {"chosen": f"{prompt}\n\nAssistant: yes", "rejected": f"{prompt}\n\nAssistant: no", "margin": i / 3}
    out[7] = {"nothing": 1}
    out[11] = "no row"
    return [row for row in out if kind != "texts" or not isinstance(row, dict) or "text" not in row] + [
        row for row in out if kind == "texts" and isinstance(row, dict) and "text" in row
    ]


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(use=True, folder=str(tmp_path / "cache"))


@pytest.fixture
def data(write: Any) -> dict[str, Any]:
    sft = rows("texts")
    return {
        "pairs": write("pairs.jsonl", rows("pairs")),
        "prompts": write("prompts.jsonl", rows("prompts")),
        "texts": [
            write("dialogues.jsonl", [row for row in sft if "text" not in row]),
            write("texts.jsonl", [row for row in sft if "text" in row]),
        ],
    }


def same_row(a: EncodedRow, b: EncodedRow) -> bool:
    columns = a.columns.keys() == b.columns.keys() and all(
        np.array_equal(a.columns[name], b.columns[name])
        and getattr(a.columns[name], "dtype", None) == getattr(b.columns[name], "dtype", None)
        for name in a.columns
    )
    return columns and (a.record, a.length, a.learned) == (b.record, b.length, b.learned)


def same(a: Tokenized, b: Tokenized) -> bool:
    reports = json.dumps([vars(c) for c in a.report.sources.values()]) == json.dumps(
        [vars(c) for c in b.report.sources.values()]
    )
    return (
        reports
        and a.report.rejected == b.report.rejected
        and np.array_equal(a.counts, b.counts)
        and np.array_equal(a.groups, b.groups)
        and len(a.rows) == len(b.rows)
        and all(map(same_row, a.rows, b.rows))
    )


@pytest.fixture
def no_tokenizing(monkeypatch: pytest.MonkeyPatch) -> Any:
    def forbid() -> None:
        monkeypatch.setattr(tokenizing, "encode_chunk", lambda *_: pytest.fail("tokenized again"))

    return forbid


@pytest.mark.parametrize("kind", ENCODERS)
def test_the_cache_gives_what_memory_gives(kind: str, data: Any, cache: CacheConfig, tokenizer, no_tokenizing) -> None:
    def read(options: CacheConfig | None) -> Tokenized:
        return tokenize(data[kind], ENCODERS[kind], tokenizer, cache=options)

    plain = read(None)
    assert isinstance(plain.rows, list)
    assert plain.report.read == 40
    assert len(plain.report.rejected) > 2
    assert plain.report.dropped_turns > 0
    assert plain.report.accepted == sum(plain.counts > 0)
    first = read(cache)
    no_tokenizing()
    second = read(cache)
    assert isinstance(second.rows, ArrowRows)
    assert same(plain, first)
    assert same(plain, second)
    assert list(second.rows.lengths) == [row.length for row in plain.rows]
    assert list(second.rows.learned) == [row.learned for row in plain.rows]


def test_other_processes_give_the_same_in_the_same_order(data: Any, cache: CacheConfig, tokenizer, monkeypatch) -> None:
    plain = tokenize(data["pairs"], ENCODERS["pairs"], tokenizer)
    monkeypatch.setattr(tokenizing, "LARGE", 1)
    monkeypatch.setattr(tokenizing, "cores", lambda: 2)
    monkeypatch.setattr(tokenizing, "_CHUNK_ROWS", 3)
    assert same(plain, tokenize(data["pairs"], ENCODERS["pairs"], tokenizer, cache=cache))


def test_the_file_is_one_that_datasets_opens(data: Any, cache: CacheConfig, tokenizer) -> None:
    found = tokenize(data["pairs"], ENCODERS["pairs"], tokenizer, cache=cache)
    (file,) = Path(str(cache.folder)).glob("*/tokens.arrow")
    table = datasets.Dataset.from_file(str(file))
    assert table[3]["chosen"] == found.rows[3].columns["chosen"].tolist()
    assert json.loads(table[3]["record"]) == found.rows[3].record


# ---------------------------------------------------------------- what makes an entry another one


def entries(cache: CacheConfig) -> set[str]:
    return {path.name for path in Path(str(cache.folder)).iterdir() if path.is_dir()}


def test_an_entry_is_for_these_files_this_tokenizer_and_these_options(write, cache: CacheConfig, tokenizer) -> None:
    path = write("x.jsonl", [{"question": f"q{i}", "prompt": "p"} for i in range(4)])

    def read(encoder: RowEncoder = ENCODERS["prompts"], tok: Any = tokenizer, **how: Any) -> list[int]:
        return tokenize(path, encoder, tok, cache=cache, **how).rows[0].columns["ids"].tolist()

    seen = [read(), read(columns={"prompt": "question"}), read(PromptEncoder("moss-en", 60))]
    seen += [read(tok=make_tokenizer(merges=[("Ċ", "Ċ")])), read(PromptEncoder("hh", 61)), read(format="prompts")]
    assert len(entries(cache)) == 6
    assert len({tuple(ids) for ids in seen}) == 4
    read(tok=make_tokenizer())  # an equal one
    assert len(entries(cache)) == 6
    before = Path(path).stat()
    write("x.jsonl", [{"question": f"r{i}", "prompt": "r"} for i in range(4)])  # as long as before
    assert Path(path).stat().st_size == before.st_size
    assert read() != seen[0]
    assert len(entries(cache)) == 7


def test_other_code_makes_another_entry(tokenizer, monkeypatch) -> None:
    one = token_cache.entry_name(tokenizer, {})
    monkeypatch.setattr(token_cache, "_code", lambda: "other")
    assert token_cache.entry_name(tokenizer, {}) != one


def test_small_data_rows_of_a_list_and_cache_false_stay_in_memory(data: Any, tmp_path: Path, tokenizer) -> None:
    folder = tmp_path / "cache"
    encoder = ENCODERS["prompts"]
    for given, use in ((data["prompts"], None), (data["prompts"], False), (["Tell me this."], True)):
        found = tokenize(given, encoder, tokenizer, cache=CacheConfig(use=use, folder=str(folder)))
        assert isinstance(found.rows, list)
    assert not folder.exists()
    rows = datasets.Dataset.from_list([{"prompt": "Tell me this."}])
    found = tokenize(rows, encoder, tokenizer, cache=CacheConfig(use=True, folder=str(folder)))
    assert isinstance(found.rows, ArrowRows)
    assert found.report.read == 1


def test_where_it_is(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    assert token_cache.default_root() == tmp_path / "lit_rlhf"
    monkeypatch.delenv("HF_DATASETS_CACHE")
    assert token_cache.default_root().parts[-2:] == ("datasets", "lit_rlhf")


# ---------------------------------------------------------------- what is not whole


@pytest.mark.parametrize("name", ["tokens.arrow", "records.npz", "rejected.jsonl", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_what_is_not_whole_is_made_again(name: str, damage: str, data: Any, cache: CacheConfig, tokenizer) -> None:
    plain = tokenize(data["pairs"], ENCODERS["pairs"], tokenizer)
    tokenize(data["pairs"], ENCODERS["pairs"], tokenizer, cache=cache)
    (file,) = Path(str(cache.folder)).glob(f"*/{name}")
    whole = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(whole[: len(whole) // 2])
    assert same(plain, tokenize(data["pairs"], ENCODERS["pairs"], tokenizer, cache=cache))
    assert len(file.read_bytes()) == len(whole)


SLOW = """
import sys, time
from lit_rlhf.data import tokenizing
from lit_rlhf.data.encoding import PromptEncoder
from lit_rlhf.data.token_cache import EntryWriter
from tests.data.fixtures import make_tokenizer
write = EntryWriter.write
def slowly(self, batch):
    write(self, batch)
    print("wrote", flush=True)
    time.sleep(float(sys.argv[3]))
EntryWriter.write = slowly
tokenizing._CHUNK_ROWS = 10
options = tokenizing.CacheConfig(use=True, folder=sys.argv[2])
found = tokenizing.tokenize(sys.argv[1], PromptEncoder("hh", 60), make_tokenizer(), cache=options)
print(len(found.rows), flush=True)
"""


def slow(path: str, cache: CacheConfig, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, path, str(cache.folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_what_a_kill_leaves_is_never_used(data: Any, cache: CacheConfig, tokenizer) -> None:
    killed = slow(data["prompts"], cache, 60)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "wrote\n"
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (left,) = Path(str(cache.folder)).glob("*.tmp")
    assert (left / "tokens.arrow").exists()
    plain = tokenize(data["prompts"], ENCODERS["prompts"], tokenizer)
    assert same(plain, tokenize(data["prompts"], ENCODERS["prompts"], tokenizer, cache=cache))
    assert not left.exists()


def test_one_process_tokenizes_and_the_other_waits(data: Any, cache: CacheConfig) -> None:
    both = [slow(data["prompts"], cache, 0.3) for _ in range(2)]
    told = [process.communicate(timeout=60) for process in both]
    assert sorted(out.count("wrote") for out, _ in told) == [0, 4]
    assert len({out.splitlines()[-1] for out, _ in told}) == 1
    assert sum("tokenizing" in err for _, err in told) == 1


def test_workers_end_with_their_process(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from lit_rlhf.data.workers import Workers\n"
        "workers = Workers(len, 2); print(list(workers.map(['a', 'bc'])), flush=True)\n"
        "print(*[p.pid for p in workers._processes], flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "[1, 2]\n"
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while time.monotonic() < end and any(_runs(pid) for pid in pids):
        time.sleep(0.05)
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_what_goes_wrong_in_a_worker_is_told(tokenizer) -> None:
    from lit_rlhf.data.workers import Workers

    with Workers(len, 1) as workers, pytest.raises(TypeError, match="has no len"):
        list(workers.map([3]))
    with Workers(os._exit, 1) as workers, pytest.raises(RuntimeError, match=r"has ended \(exit code 9\)"):
        list(workers.map([9]))


# ---------------------------------------------------------------- where it cannot be written


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("how", ["full", "read-only", "a file"])
def test_without_room_it_goes_on_without(how: str, small: Path, write: Any, tokenizer, capsys) -> None:
    path = write("x.jsonl", [{"prompt": f"{i} " + "x" * 20} for i in range(3000)])
    folder = small / "cache"
    if how == "read-only":
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    elif how == "a file":
        folder.write_text("")
    found = tokenize(path, ENCODERS["prompts"], tokenizer, cache=CacheConfig(use=True, folder=str(folder)))
    assert len(found.rows) == 3000
    lines = [line for line in capsys.readouterr().err.splitlines() if "not kept" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"lit-rlhf: token ids are not kept on the disk ({folder}")
    assert how != "full" or "No space left on device" in lines[0]
    assert [p for p in small.rglob("*") if ".tmp" in p.name] == []


def test_a_whole_entry_serves_from_a_read_only_disk(data: Any, small: Path, tokenizer, no_tokenizing) -> None:
    options = CacheConfig(use=True, folder=str(small))
    plain = tokenize(data["prompts"], ENCODERS["prompts"], tokenizer, cache=options)
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    no_tokenizing()
    again = tokenize(data["prompts"], ENCODERS["prompts"], tokenizer, cache=options)
    assert same(plain, again)


def test_data_that_changes_meanwhile_is_refused(write, cache: CacheConfig, tokenizer, monkeypatch) -> None:
    path = write("x.jsonl", [{"prompt": "p"}])
    encode = tokenizing.encode_chunk

    def late(*args: Any) -> Any:
        write("x.jsonl", [{"prompt": "p"}, {"prompt": "q"}])
        return encode(*args)

    monkeypatch.setattr(tokenizing, "encode_chunk", late)
    with pytest.raises(ValueError, match="changed while it was read"):
        tokenize(path, ENCODERS["prompts"], tokenizer, cache=cache)
    assert entries(cache) == set()
