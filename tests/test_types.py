import torch

from lit_rlhf.types import DeviceBatch, PromptBatch


def make(n: int = 3) -> PromptBatch:
    return PromptBatch(
        prompt_ids=torch.arange(n * 2).view(n, 2),
        prompt_mask=torch.ones(n, 2, dtype=torch.bool),
        records=tuple({"i": i} for i in range(n)),
    )


def test_rows_take_tensors_and_tuples_alike() -> None:
    picked = make().rows(torch.tensor([2, 0]))
    assert picked.prompt_ids.tolist() == [[4, 5], [0, 1]]
    assert [r["i"] for r in picked.records] == [2, 0]
    assert len(picked) == 2


def test_lightning_leaves_the_content_alone() -> None:
    from lightning.pytorch.plugins.precision import HalfPrecision

    batch = DeviceBatch(make())
    assert HalfPrecision("bf16-true").convert_input(batch) is batch
    assert next(iter(batch)).size(0) == 3
