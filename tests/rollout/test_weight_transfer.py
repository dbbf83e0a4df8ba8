"""Weights as files and as broadcasts: what arrives is what was sent."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from lit_rlhf.rollout import weight_transfer
from lit_rlhf.rollout.weight_transfer import (
    Meeting,
    SharedFolder,
    as_json,
    described,
    join,
    received,
    sent,
    write_files,
)


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(6, 5, generator=generator)
    return {
        "embed": first, "head": first, "turned": first.T, "half": torch.randn(7, generator=generator).bfloat16(),
        "count": torch.tensor([3, 4]),
    }  # fmt: skip


@pytest.mark.parametrize("most", [1, 2**30])
def test_files_hold_every_weight_and_tied_ones_under_both_names(tmp_path, monkeypatch, most) -> None:
    monkeypatch.setattr(weight_transfer, "FILE_BYTES", most)
    write_files(weights().items(), tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == (1 if most > 1 else len(weights()))
    found = {name: value for file in files for name, value in load_file(file).items()}
    assert found.keys() == weights().keys()
    assert all(torch.equal(found[name], value) for name, value in weights().items())


def test_a_folder_is_gone_when_it_is_left(tmp_path) -> None:
    def fails() -> None:
        with SharedFolder(tmp_path) as folder:
            (folder / "x").write_text("1")
            assert list(tmp_path.iterdir()) == [folder]
            raise RuntimeError("in it")

    with pytest.raises(RuntimeError, match="in it"):
        fails()
    assert list(tmp_path.iterdir()) == []


def test_broadcasts_arrive_at_every_worker_and_need_no_default_group() -> None:
    store = dist.TCPStore("127.0.0.1", 0, 3, is_master=True, wait_for_workers=False)
    meeting, found = Meeting("127.0.0.1", store.port, 3, "gloo", 60.0), {}

    def worker(rank: int) -> None:
        group = join(as_json(meeting), rank=rank)
        for _ in range(2):  # the group is used again
            found[rank] = dict(received(group, described(weights().items()), torch.device("cpu")))

    threads = [threading.Thread(target=worker, args=(rank,)) for rank in (1, 2)]
    for thread in threads:
        thread.start()
    group = join(meeting, rank=0, store=store)
    for _ in range(2):
        sent(group, weights().items())
    for thread in threads:
        thread.join()
    assert not dist.is_initialized()
    for rank in (1, 2):
        assert all(torch.equal(found[rank][name], value) for name, value in weights().items())
