"""The reward model's forward pass: packed pairs equal separate rows, in scores, LM terms and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from lit_rlhf.models import pair_forward as module
from lit_rlhf.models.cpu import tune
from lit_rlhf.models.packed_pairs import can_pack
from lit_rlhf.models.scalar import ScalarHead, ScalarModel
from tests.models.test_packed_pairs import batch_of, trunk


@pytest.mark.parametrize("attention", ["sdpa", "eager", "tuned"])
@pytest.mark.parametrize("with_response", [True, False])
def test_packed_equals_separate(attention, with_response):
    torch.manual_seed(1)
    model, batch = ScalarModel(trunk(attention.replace("tuned", "sdpa")), ScalarHead(16)), batch_of(width=2)
    if attention == "tuned":
        tune(model, "cpu")
        assert can_pack(model.trunk)
    results = []
    for forward in (module._packed, module._separate):
        out = forward(model, batch, with_response=with_response)
        loss = -F.logsigmoid(out.chosen - out.rejected).sum() + out.response_hidden.square().sum()
        results.append((out, torch.autograd.grad(loss, list(model.parameters()))))
    (packed, packed_grads), (separate, separate_grads) = results
    assert torch.equal(packed.response_ids, separate.response_ids)
    assert len(packed.response_ids) == (
        int((batch.chosen_mask.sum(1) - batch.prompt_length).sum()) if with_response else 0
    )
    for name in ("chosen", "rejected", "response_hidden"):
        torch.testing.assert_close(getattr(packed, name), getattr(separate, name), rtol=0, atol=1e-5)
    norm = torch.stack([g.norm() for g in separate_grads]).norm().item()
    for a, b in zip(packed_grads, separate_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * norm)


def test_the_packed_way_is_taken_where_the_model_allows_it(monkeypatch):
    model, batch = ScalarModel(trunk("sdpa"), ScalarHead(16)), batch_of()
    module.pair_forward(model, batch, with_response=False)  # the first call looks at the model's last layer
    widths: list[int] = []
    model.trunk.register_forward_pre_hook(lambda _, a, kw: widths.append(kw["input_ids"].size(1)), with_kwargs=True)
    module.pair_forward(model, batch, with_response=False)
    assert widths == [max(module.pair_lengths(model, batch))]
    model.trunk.config.sliding_window = 2
    assert module.pair_lengths(model, batch) == [11, 12, 15, 5, 4]
    widths.clear()
    module.pair_forward(model, batch, with_response=False)
    assert widths == [7, 9]
