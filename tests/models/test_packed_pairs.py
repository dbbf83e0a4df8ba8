"""Packed pairs score and train exactly as separate rows do."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel

from lit_rlhf.data.batching import pad_right
from lit_rlhf.models.packed_pairs import can_pack, common_prefix, pack_pairs, packed_lengths
from lit_rlhf.types import PreferenceBatch

PAIRS = [  # prompt length, chosen row, rejected row
    (3, [1, 5, 6, 7, 8, 2], [1, 5, 6, 9, 2]),
    (2, [1, 5, 6, 7, 8, 9, 2], [1, 5, 6, 7, 2]),  # the responses begin alike
    (4, [1, 4, 4, 4, 7, 2], [1, 4, 4, 4, 8, 8, 8, 8, 2]),
    (1, [1, 7], [1, 7, 7]),  # one row is the other's beginning: each keeps a token of its own
    (1, [3, 7], [4, 8]),  # nothing in common
]


def batch_of(pairs=PAIRS, width=0) -> PreferenceBatch:
    sides = [[p[i] for p in pairs] for i in (1, 2)]
    (chosen, chosen_mask), (rejected, rejected_mask) = (pad_right(s, 0, length=max(map(len, s)) + width) for s in sides)
    return PreferenceBatch(
        chosen_ids=chosen,
        chosen_mask=chosen_mask,
        rejected_ids=rejected,
        rejected_mask=rejected_mask,
        prompt_length=torch.tensor([p[0] for p in pairs]),
        margin=torch.arange(len(pairs)).float(),
    )


def trunk(attention: str, kv_heads: int = 2) -> LlamaModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        intermediate_size=32,
        attn_implementation=attention,
        initializer_range=0.5,
    )
    return LlamaModel(config)


def separate(model, head, batch):
    """Scores and the chosen response's hidden states at its predecessors, row by row with nothing shared or padded."""
    scores, before = [], []
    for ids, mask in ((batch.chosen_ids, batch.chosen_mask), (batch.rejected_ids, batch.rejected_mask)):
        rows = [model(input_ids=row[keep][None]).last_hidden_state[0] for row, keep in zip(ids, mask, strict=True)]
        scores.append(torch.stack([head(h[-1])[0] for h in rows]))
        before.append(torch.cat([h[n - 1 : -1] for h, n in zip(rows, batch.prompt_length.tolist(), strict=True)]))
    return scores[0], scores[1], before[0]


def packed(model, head, batch):
    pairs = pack_pairs(batch)
    hidden = model(
        input_ids=pairs.input_ids,
        position_ids=pairs.position_ids,
        attention_mask=pairs.mask_for(model.config._attn_implementation),
    ).last_hidden_state
    row = torch.arange(len(batch))
    before = hidden[:, :-1][pairs.loss_mask[:, 1:]]
    return (
        head(hidden[row, pairs.chosen_last])[:, 0],
        head(hidden[row, pairs.rejected_last])[:, 0],
        before,
    )


def gradients(model, head, outputs):
    chosen, rejected, before = outputs
    loss = -F.logsigmoid(chosen - rejected).sum() + (before**2).sum()
    parameters = [*model.parameters(), *head.parameters()]
    return torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize(("attention", "kv_heads"), [("sdpa", 2), ("sdpa", 4), ("eager", 2)])
@pytest.mark.parametrize("width", [0, 3])
def test_scores_and_gradients_equal_separate_rows(attention, kv_heads, width):
    model, head, batch = trunk(attention, kv_heads), torch.nn.Linear(16, 1, bias=False), batch_of(width=width)
    apart, together = separate(model, head, batch), packed(model, head, batch)
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)
    assert apart[0].std() > 0.1  # the scores are far enough apart for the tolerance to mean something
    apart, together = gradients(model, head, apart), gradients(model, head, together)
    norm = torch.stack([a.norm() for a in apart]).norm().item()
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5 * norm)


def test_rejected_tail_does_not_see_the_chosen_one():
    pairs = pack_pairs(batch_of(PAIRS[:1]))
    assert pairs.input_ids.tolist() == [[1, 5, 6, 7, 8, 2, 9, 2]]
    assert pairs.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4]]
    assert pairs.attention_mask[0, 0, 7].tolist() == [True, True, True, False, False, False, True, True]
    assert pairs.attention_mask[0, 0, 4].tolist() == [True] * 5 + [False] * 3
    assert (pairs.chosen_last.item(), pairs.rejected_last.item()) == (5, 7)
    assert pairs.loss_mask.tolist() == [[False] * 3 + [True] * 3 + [False] * 2]


def test_what_is_in_the_padding_changes_nothing():
    model, head = trunk("sdpa"), torch.nn.Linear(16, 1, bias=False)
    clean, dirty = batch_of(width=2), batch_of(width=2)
    for ids, mask in ((dirty.chosen_ids, dirty.chosen_mask), (dirty.rejected_ids, dirty.rejected_mask)):
        ids[~mask] = 7
    for a, b in zip(packed(model, head, clean), packed(model, head, dirty), strict=True):
        assert torch.equal(a, b)


def test_lengths_before_packing_are_those_after():
    batch = batch_of()
    assert common_prefix(batch).tolist() == [3, 4, 4, 1, 0]
    lengths = packed_lengths(batch)
    assert lengths.tolist() == [6 + 5 - 3, 7 + 5 - 4, 6 + 9 - 4, 2 + 3 - 1, 4]
    assert pack_pairs(batch).input_ids.shape == (5, 11)
    assert (pack_pairs(batch).rejected_last + 1).tolist() == lengths.tolist()


def test_only_models_that_can_are_packed():
    model = trunk("sdpa")
    assert can_pack(model)
    model.config.sliding_window = 4
    assert not can_pack(model)
    assert not can_pack(trunk("flex_attention"))
    with pytest.raises(ValueError, match="need `sdpa` or `eager` attention, not `flash_attention_2`"):
        pack_pairs(batch_of()).mask_for("flash_attention_2")
