import pytest
import torch

from lit_rlhf.types import DeviceBatch, PromptBatch, Rollout


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


def rollout(rows: int = 3, prompt: int = 2, width: int = 5) -> Rollout:
    ids = torch.arange(rows * (prompt + width)).view(rows, -1)
    return Rollout(
        prompt_ids=ids[:, :prompt],
        prompt_mask=torch.ones(rows, prompt, dtype=torch.bool),
        records=({},) * rows,
        input_ids=ids,
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
        response_mask=torch.arange(width).expand(rows, -1) < 2,
        ended=torch.ones(rows, dtype=torch.bool),
        extras={"row": torch.arange(rows), "token": torch.arange(rows * width).view(rows, width)},
    )


def test_extras_are_sliced_and_moved_like_the_other_columns() -> None:
    picked = rollout().rows(torch.tensor([2, 0]))
    assert picked.extras["row"].tolist() == [2, 0]
    assert picked.extras["token"][:, 0].tolist() == [10, 0]
    assert picked.group.tolist() == [2, 0]
    assert rollout().to("meta").extras["token"].device.type == "meta"


@pytest.mark.parametrize("prompt", [2, 5])  # 5: as wide as the response
def test_up_to_cuts_what_has_response_columns_and_nothing_else(prompt: int) -> None:
    whole = rollout(prompt=prompt)
    cut = whole.up_to(2)
    assert cut.response_mask.shape == cut.extras["token"].shape == (3, 2)
    assert torch.equal(cut.response_ids, whole.response_ids[:, :2])
    assert torch.equal(cut.prompt_ids, whole.prompt_ids)
    assert torch.equal(cut.extras["row"], whole.extras["row"])
    assert cut.sampler_logprobs is None
