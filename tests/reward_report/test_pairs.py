from __future__ import annotations

import torch

from lit_rlhf.reward_report import ScoredPair, scored_pairs
from lit_rlhf.reward_report.pairs import PairColumns
from lit_rlhf.types import PreferenceBatch


class Letters:
    """Decodes 1 as "a", 2 as "b", ...; 0 is padding, 9 EOS."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(
            "_" if i == 0 else "." if i == 9 else chr(96 + i) for i in ids if not (skip_special_tokens and i in (0, 9))
        )


def test_a_batch_becomes_pairs_without_padding_or_eos():
    batch = PreferenceBatch(
        chosen_ids=torch.tensor([[1, 2, 3, 9, 0], [1, 4, 4, 4, 9]]),
        chosen_mask=torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]).bool(),
        rejected_ids=torch.tensor([[1, 2, 5, 5, 9], [1, 9, 0, 0, 0]]),
        rejected_mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool(),
        prompt_length=torch.tensor([2, 1]),
        margin=torch.zeros(2),
        records=({"subset": "helpful", "group": "first"}, {"subset": None}),
    )
    one, two = scored_pairs(batch, torch.tensor([1.5, 0.0]), torch.tensor([-1.0, 2.0]), Letters())
    assert one == ScoredPair(
        prompt="ab",
        chosen="c",
        rejected="ee",
        chosen_score=1.5,
        rejected_score=-1.0,
        chosen_length=2,
        rejected_length=3,
        subset="helpful",
        prompt_source=[1, 2],
        cluster="first",
    )
    assert (two.prompt, two.chosen, two.rejected, two.subset, two.cluster) == ("a", "ddd", "", "all", "")
    assert (two.chosen_length, two.rejected_length, two.difference) == (4, 1, -2.0)
    assert PairColumns.from_pairs([one, two]).clusters == ["first", "a"]
