"""SFT and preference data modules: what reaches the model, over ranks, epochs, resumes; errors before any model."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from lit_rlhf.datamodules.preference import PreferenceDataModule
from lit_rlhf.datamodules.sft import SFTDataModule
from lit_rlhf.types import PreferenceBatch, TextBatch
from tests.data.fixtures import hh


@pytest.fixture
def pairs_path(write) -> str:
    rows = [
        {"chosen": hh(f"Q{i}" + "?" * i, "good"), "rejected": hh(f"Q{i}" + "?" * i, "bad" * (i % 5 + 1)), "margin": i}
        for i in range(40)
    ]
    return write("pairs.jsonl", rows)


def module(cls: Any, tokenizer_path: str, train: Any, **kwargs: Any) -> Any:
    return cls(tokenizer_path, train, **({"template": "hh"} | kwargs))


def ready(cls: Any, tokenizer_path: str, train: Any, **kwargs: Any) -> Any:
    data = module(cls, tokenizer_path, train, **kwargs)
    data.setup()
    return data


def test_preference_batch_columns(tokenizer_path, pairs_path):
    data = ready(PreferenceDataModule, tokenizer_path, pairs_path, batch_size=40)
    (batch,) = list(data.train_dataloader())
    assert isinstance(batch.content, PreferenceBatch)
    decode = data.tokenizer.decode
    for i, record in enumerate(batch.content.records):
        chosen = batch.content.chosen_ids[i][batch.content.chosen_mask[i]]
        rejected = batch.content.rejected_ids[i][batch.content.rejected_mask[i]]
        cut = int(batch.content.prompt_length[i])
        assert decode(chosen) == "<s>" + record["chosen"] + "</s>"
        assert decode(rejected) == "<s>" + record["rejected"] + "</s>"
        assert torch.equal(chosen[:cut], rejected[:cut])
        assert decode(chosen[cut:]) == " good</s>"
        assert batch.content.margin[i] == record["margin"]
        assert (record["subset"], record["source"]) == (None, pairs_path)
    assert batch.info == {"global_rows": 40, "global_tokens": 40 * len(" good!")}


def test_sft_batch_learns_responses_and_texts(tokenizer_path, pairs_path, write):
    text = write("t.jsonl", [{"text": "abcdef"}])
    data = ready(SFTDataModule, tokenizer_path, [pairs_path, text], batch_size=64, max_length=100)
    (batch,) = list(data.train_dataloader())
    assert isinstance(batch.content, TextBatch)
    told = {
        data.tokenizer.decode(ids[mask])
        for ids, mask in zip(batch.content.input_ids, batch.content.loss_mask, strict=True)
    }
    assert told == {" good</s>", "abcdef</s>"}
    assert not (batch.content.loss_mask & ~batch.content.attention_mask).any()
    assert batch.info["global_tokens"] == int(batch.content.loss_mask.sum())


def test_ranks_share_global_batches_and_agree_on_the_totals(tokenizer_path, pairs_path, monkeypatch):
    def batches(rank: int, world: int) -> list[Any]:
        data = module(PreferenceDataModule, tokenizer_path, pairs_path, max_tokens=600, min_rows=4, max_rows=16)
        monkeypatch.setattr(data, "_world", lambda: (world, rank))
        data.setup()
        return list(data.train_dataloader())

    whole, ranks = batches(0, 1), [batches(r, 3) for r in range(3)]
    assert len(whole) > 3
    for i, batch in enumerate(whole):
        parts = [r[i] for r in ranks]
        assert all(part.info == batch.info for part in parts)
        lines = sorted(record["line"] for part in parts for record in part.content.records)
        assert lines == sorted(record["line"] for record in batch.content.records)
        loads = [int(p.content.chosen_mask.sum() + p.content.rejected_mask.sum()) for p in parts]
        assert min(loads) > 0


@pytest.mark.parametrize("limits", [{"batch_size": 6}, {"max_tokens": 500}])
def test_every_epoch_has_every_row_once_in_another_order(tokenizer_path, pairs_path, limits):
    loader = ready(PreferenceDataModule, tokenizer_path, pairs_path, **limits).train_dataloader()
    epochs = [[r["line"] for b in loader for r in b.content.records] for _ in range(2)]
    assert [sorted(e) for e in epochs] == [list(range(1, 41))] * 2
    assert epochs[0] != epochs[1]
    again = ready(PreferenceDataModule, tokenizer_path, pairs_path, **limits).train_dataloader()
    assert [r["line"] for b in again for r in b.content.records] == epochs[0]


def test_held_out_splits_share_no_prompt_and_lose_no_row(tokenizer_path, write):
    rows = [{"chosen": hh(f"Q{i // 4}", f"g{i}"), "rejected": hh(f"Q{i // 4}", f"b{i}")} for i in range(80)]
    path = write("x.jsonl", rows)
    data = ready(PreferenceDataModule, tokenizer_path, path, val_fraction=0.2, test_fraction=0.1, seed=5)
    lines = {k: {row.record["line"] for row in v} for k, v in data.rows.items()}
    assert {k: len(v) for k, v in lines.items()} == {"val": 16, "test": 8, "train": 56}
    prompts = [{(line - 1) // 4 for line in v} for v in lines.values()]
    assert not prompts[0] & prompts[1] | prompts[0] & prompts[2] | prompts[1] & prompts[2]
    assert [r["line"] for b in data.predict_dataloader() for r in b.content.records] == [
        row.record["line"] for row in data.rows["test"]
    ]


def test_refused_rows_are_written_beside_the_run_and_error_policy_stops(tokenizer_path, write, hh_rows_bad, tmp_path):
    path = write("x.jsonl", hh_rows_bad)
    data = ready(PreferenceDataModule, tokenizer_path, path, max_length=60, rejects_dir=str(tmp_path / "run"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "rejects-train.jsonl").read_text().splitlines()]
    assert [(r["line"], r["reason"]) for r in rows] == [(2, "empty response"), (3, "too long")]
    assert data.reports["train"].accepted + len(rows) == data.reports["train"].read == 4
    with pytest.raises(ValueError, match=r"2 of 4 rows cannot be used: .*x\.jsonl:2: empty response"):
        ready(PreferenceDataModule, tokenizer_path, path, max_length=60, on_bad_row="error")


@pytest.fixture
def hh_rows_bad() -> list[dict[str, str]]:
    return [
        {"chosen": hh("q", "a"), "rejected": hh("q", "b")},
        {"chosen": hh("q", ""), "rejected": hh("q", "b")},
        {"chosen": hh("q", "a" * 99), "rejected": hh("q", "b")},
        {"chosen": hh("r", "a"), "rejected": hh("r", "b")},
    ]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"batch_size": 4, "max_tokens": 9}, "`batch_size` .* or `max_tokens` .*, not both"),
        ({"max_length": 1}, r"`max_length` \(1\)"),
        ({"val_fraction": 1.0}, r"`val_fraction` \(1.0\) must be in \[0, 1\)"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, r"must be below 1"),
        ({"train": None}, "No data: give `train`"),
        ({"batch_size": 0}, r"`batch_size` \(0\) must be a positive multiple"),
        ({"max_tokens": 0}, r"`max_tokens` \(0\)"),
        ({"template": None}, "no chat template"),
        ({"template": "x"}, r"`template` \('x'\)"),
        ({"format": "x"}, r"`format` \('x'\)"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(tokenizer_path, pairs_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        ready(PreferenceDataModule, tokenizer_path, **({"train": pairs_path} | kwargs))


def test_batch_size_must_divide_over_the_ranks(tokenizer_path, pairs_path, monkeypatch):
    data = module(SFTDataModule, tokenizer_path, pairs_path, batch_size=6)
    monkeypatch.setattr(data, "_world", lambda: (4, 0))
    with pytest.raises(
        ValueError, match=r"`batch_size` \(6\) must be a positive multiple of the number of ranks \(4\)"
    ):
        data.setup()


def test_missing_split_is_named(tokenizer_path, pairs_path):
    data = ready(SFTDataModule, tokenizer_path, pairs_path)
    assert data.val_dataloader() == []
    with pytest.raises(ValueError, match="No test data: give `test` or `test_fraction`"):
        data.test_dataloader()


class Recorder(L.LightningModule):
    """Counts what it is given; one parameter so that a checkpoint has something to hold."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, ...]] = []
        self.validated = 0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: Any, index: int) -> None:
        self.seen.append(tuple(record["line"] for record in batch.content.records))
        assert batch.info["global_rows"] == len(batch)
        self.optimizers().step()

    def validation_step(self, batch: Any, index: int) -> None:
        self.validated += len(batch)


def fit(data: Any, tmp_path: Any, ckpt: str | None = None, **kwargs: Any) -> Recorder:
    recorder = Recorder()
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    checkpoints = L.pytorch.callbacks.ModelCheckpoint(
        tmp_path / "ckpt", every_n_train_steps=1, save_top_k=-1, filename="{step}"
    )
    trainer = L.Trainer(**options, callbacks=[checkpoints], default_root_dir=tmp_path, **kwargs)
    trainer.fit(recorder, datamodule=data, ckpt_path=ckpt)
    return recorder


@pytest.mark.parametrize("limits", [{"batch_size": 12}, {"max_tokens": 700}])
def test_lightning_resumes_in_the_middle_of_an_epoch(tokenizer_path, pairs_path, tmp_path, limits):
    def data() -> Any:
        return module(PreferenceDataModule, tokenizer_path, pairs_path, val_fraction=0.1, **limits)

    straight = fit(data(), tmp_path, max_epochs=3)
    steps = len(straight.seen) // 3
    assert straight.validated >= 3 * 4
    assert len({frozenset(straight.seen[i : i + steps]) for i in (0, steps, 2 * steps)}) == 3
    for at in (2, steps, steps + 1):
        resumed = fit(data(), tmp_path / str(at), max_epochs=3, ckpt=str(tmp_path / "ckpt" / f"step={at}.ckpt"))
        assert resumed.seen == straight.seen[at:]


def test_lightning_flags_leave_the_order_a_function_of_the_epoch(tokenizer_path, pairs_path, tmp_path):
    def data() -> Any:
        return module(PreferenceDataModule, tokenizer_path, pairs_path, batch_size=8)

    straight = fit(data(), tmp_path / "a", max_epochs=2).seen
    limited = fit(data(), tmp_path / "b", max_epochs=2, limit_train_batches=2).seen
    reloaded = fit(data(), tmp_path / "c", max_epochs=2, reload_dataloaders_every_n_epochs=1).seen
    assert limited == [*straight[:2], *straight[5:7]]
    assert reloaded == straight


def test_rejects_go_to_the_trainers_directory(tokenizer_path, write, hh_rows_bad, tmp_path):
    data = module(PreferenceDataModule, tokenizer_path, write("x.jsonl", hh_rows_bad), max_length=60)
    trainer = {"world_size": 1, "global_rank": 0, "current_epoch": 0, "lightning_module": None}
    data.trainer = SimpleNamespace(default_root_dir=str(tmp_path), **trainer)
    data.setup()
    assert (tmp_path / "rejects-train.jsonl").is_file()


def test_hh_sample_through_the_data_modules(tokenizer_path, hh_sample):
    for cls in (SFTDataModule, PreferenceDataModule):
        data = ready(cls, tokenizer_path, hh_sample, max_length=1024, val_fraction=0.1)
        report = data.reports["train"]
        assert report.read == 1812 == report.accepted + len(report.rejected)
        assert report.accepted == sum(len(rows) for rows in data.rows.values())
        assert sum(b.info["global_rows"] for b in data.train_dataloader()) == len(data.rows["train"])
