"""The check around every source of reward, and the parser of what programs and services give."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.rewards.base import Reward, parse_scores, quoted
from lit_rlhf.types import RewardOutput
from tests.rewards.requests import make_request


class Fixed(Reward):
    name = "fixed"

    def __init__(self, scores, token_scores=None):
        self.output = RewardOutput(scores=scores, token_scores=token_scores)

    def score(self, request):
        return self.output


@pytest.fixture
def request_(tokenizer):
    return make_request(tokenizer, ["first prompt", "second"], ["abc", "d"])


class TestCall:
    def test_casts_to_fp32(self, request_):
        output = Fixed(torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True))(request_)
        assert output.scores.dtype == torch.float32
        assert not output.scores.requires_grad
        assert output.token_scores is None

    @pytest.mark.parametrize("shape", [(3,), (2, 1), ()])
    def test_wrong_shape(self, request_, shape):
        with pytest.raises(ValueError, match=r"Reward 'fixed' must give scores of shape \(2,\), not"):
            Fixed(torch.zeros(shape))(request_)

    @pytest.mark.parametrize(("bad", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
    def test_not_finite_names_the_prompt(self, request_, bad, shown):
        with pytest.raises(ValueError, match=rf"Reward 'fixed' gave {shown} for prompt 'second'"):
            Fixed(torch.tensor([0.0, bad]))(request_)

    def test_token_scores_are_masked(self, request_):
        output = Fixed(torch.zeros(2), torch.full((2, 4), 0.5))(request_)
        assert torch.equal(output.token_scores, 0.5 * request_.rollout.response_mask)

    def test_token_scores_outside_the_mask_may_be_anything(self, request_):
        table = torch.tensor([[1.0, 2, 3, 4], [5, 6, float("nan"), float("inf")]])
        assert Fixed(torch.zeros(2), table)(request_).token_scores[1].tolist() == [5, 6, 0, 0]

    def test_bad_token_scores(self, request_):
        with pytest.raises(ValueError, match=r"of shape \(2, 4\), not \(2, 3\)"):
            Fixed(torch.zeros(2), torch.zeros(2, 3))(request_)
        with pytest.raises(ValueError, match="gave nan for prompt 'first prompt'"):
            Fixed(torch.zeros(2), torch.full((2, 4), float("nan")))(request_)

    def test_describe(self):
        assert Fixed(torch.zeros(1)).describe() == {"name": "fixed", "type": "Fixed"}

    def test_long_prompts_are_shortened(self):
        assert len(quoted("x" * 5000)) < 250


class TestParse:
    def test_numbers(self, request_):
        for value in ([1, True], (1.0, 1.0), torch.ones(2), torch.ones(2).numpy(), {"scores": [1, 1]}):
            assert parse_scores(value, request_, source="it").scores.tolist() == [1.0, 1.0]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ([1.0], "it gave 1 scores for 2 responses"),
            (None, "it must give a list of 2 scores, not NoneType"),
            ("ab", "it must give a list of 2 scores, not str"),
            ({"reward": [1, 2]}, "it must give a list of 2 scores, not NoneType"),
            ([1.0, None], "it gave None, which is no number, for prompt 'second'"),
            ([1.0, "2"], "it gave '2', which is no number, for prompt 'second'"),
        ],
    )
    def test_errors(self, request_, value, message):
        with pytest.raises(ValueError, match=message):
            parse_scores(value, request_, source="it")

    def test_token_scores(self, request_):
        output = parse_scores({"scores": [1, 2], "token_scores": [[1, 2, 3, 4], [5, 6]]}, request_, source="it")
        assert output.token_scores.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
        with pytest.raises(ValueError, match="it gave 1 token scores for 2 tokens of prompt 'second'"):
            parse_scores({"scores": [1, 2], "token_scores": [[1, 2, 3, 4], [5]]}, request_, source="it")
        with pytest.raises(ValueError, match="`token_scores` for each of the 2 responses"):
            parse_scores({"scores": [1, 2], "token_scores": [[1, 2, 3, 4]]}, request_, source="it")
