"""Mixtures and wrappers, and every source built from YAML."""

from __future__ import annotations

import math

import pytest
import torch
import yaml

from lit_rlhf.rewards import (
    HTTPReward,
    LengthReward,
    MissingEOSReward,
    MixtureReward,
    ModelReward,
    PythonReward,
    Reward,
)
from lit_rlhf.types import RewardOutput
from tests.rewards.requests import make_request

CPU = torch.device("cpu")


class Fixed(Reward):
    def __init__(self, scores, token_scores=None, name="fixed"):
        self.scores, self.token_scores, self.name, self.ready = scores, token_scores, name, False

    def setup(self, *, device, tokenizer):
        self.ready = True

    def score(self, request):
        return RewardOutput(scores=torch.tensor(self.scores), token_scores=self.token_scores)


@pytest.fixture
def request_(tokenizer):
    """Responses of 4, 2 and 1 tokens; the second was cut."""
    return make_request(tokenizer, ["p", "q", "r"], ["abc", "de", ""], ended=[True, False, True])


class TestMixture:
    def test_weighted_sum(self, request_):
        parts = [Fixed([1.0, 2.0, 3.0]), Fixed([10.0, 20.0, 30.0])]
        assert MixtureReward(parts)(request_).scores.tolist() == [11.0, 22.0, 33.0]
        mixture = MixtureReward(parts, weights=[0.5, -1.0])
        mixture.setup(device=CPU, tokenizer=None)
        assert all(part.ready for part in parts)
        output = mixture(request_)
        assert output.scores.tolist() == [-9.5, -19.0, -28.5]
        assert output.token_scores is None

    def test_token_scores(self, request_):
        parts = [Fixed([0.0] * 3, torch.ones(3, 4)), Fixed([1.0] * 3), Fixed([0.0] * 3, torch.ones(3, 4))]
        output = MixtureReward(parts, weights=[2.0, 1.0, -0.5])(request_)
        assert torch.equal(output.token_scores, 1.5 * request_.rollout.response_mask)

    def test_a_bad_part_is_named(self, request_):
        mixture = MixtureReward([Fixed([1.0] * 3), Fixed([1.0, float("nan"), 1.0], name="broken")], weights=[1, 0])
        with pytest.raises(ValueError, match="Reward 'broken' gave nan for prompt 'q'"):
            mixture(request_)

    def test_arguments(self):
        with pytest.raises(ValueError, match="at least one"):
            MixtureReward([])
        with pytest.raises(ValueError, match=r"`weights` \(2\) must be as many as `rewards` \(1\)"):
            MixtureReward([Fixed([])], weights=[1, 2])
        with pytest.raises(ValueError, match="must be finite"):
            MixtureReward([Fixed([])], weights=[float("inf")])

    def test_describe(self):
        described = MixtureReward([PythonReward("m:f")], weights=[2.0]).describe()
        assert described["weights"] == [2.0]
        assert described["rewards"][0]["function"] == "m:f"


class TestLength:
    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"coef": 0.5, "longest": 1}, [-1.5, -0.5, 0.0]),
            ({"coef": 0.5, "longest": 4}, [0.0, 0.0, 0.0]),
            ({"coef": 2.0, "shortest": 2}, [0.0, 0.0, -2.0]),
            ({"coef": 1.0, "shortest": 2, "longest": 2}, [-2.0, 0.0, -1.0]),
            ({"coef": 1.0, "longest": 0, "max_cost": 1.5}, [-1.5, -1.5, -1.0]),
        ],
    )
    def test_cost(self, request_, options, expected):
        assert LengthReward(Fixed([0.0] * 3), **options)(request_).scores.tolist() == expected

    @pytest.mark.parametrize(
        "options",
        [
            {"coef": -1.0, "longest": 1},
            {"coef": float("nan"), "longest": 1},
            {"coef": 1.0},
            {"coef": 1.0, "longest": 1, "shortest": 2},
            {"coef": 1.0, "shortest": -1},
            {"coef": 1.0, "longest": 1, "max_cost": -1.0},
        ],
    )
    def test_arguments(self, options):
        with pytest.raises(ValueError, match="`"):
            LengthReward(Fixed([]), **options)


class TestMissingEOS:
    def test_penalty(self, request_):
        assert MissingEOSReward(Fixed([1.0] * 3), penalty=3.0)(request_).scores.tolist() == [1.0, -2.0, 1.0]

    def test_replacement(self, request_):
        assert MissingEOSReward(Fixed([1.0] * 3), replacement=-7.0)(request_).scores.tolist() == [1.0, -7.0, 1.0]

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"penalty": 1.0, "replacement": 0.0},
            {"penalty": -1.0},
            {"penalty": math.inf},
            {"penalty": math.nan},
            {"replacement": -math.inf},
        ],
    )
    def test_arguments(self, options):
        with pytest.raises(ValueError, match="`penalty`"):
            MissingEOSReward(Fixed([]), **options)


def test_wrappers_keep_token_scores_path_and_name(request_):
    inner = Fixed([0.0] * 3, torch.ones(3, 4))
    wrapped = MissingEOSReward(LengthReward(inner, coef=1.0, longest=9), penalty=1.0)
    wrapped.setup(device=CPU, tokenizer=None)
    assert inner.ready
    assert torch.equal(wrapped(request_).token_scores, request_.rollout.response_mask.float())
    assert (wrapped.name, wrapped.path) == ("fixed", None)
    assert LengthReward(ModelReward("org/rm"), coef=1.0, longest=9).path == "org/rm"
    assert wrapped.describe()["reward"]["reward"]["name"] == "fixed"


YAML = """
reward:
  class_path: MissingEOSReward
  init_args:
    penalty: 1.0
    reward:
      class_path: lit_rlhf.rewards.LengthReward
      init_args:
        coef: 0.01
        longest: 100
        reward:
          class_path: MixtureReward
          init_args:
            weights: [1.0, 0.5, 0.1]
            rewards:
            - class_path: ModelReward
              init_args: {path: runs/rm/hf, dtype: bfloat16, placement: cpu}
            - class_path: PythonReward
              init_args: {function: "my_rules:score", timeout: 5}
            - class_path: HTTPReward
              init_args: {url: "http://localhost:8000/score", token_env: REWARD_TOKEN}
"""


def test_all_from_yaml():
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    reward = parser.instantiate(parser.parse_object(yaml.safe_load(YAML))).reward
    assert isinstance(reward, MissingEOSReward)
    mixture = reward.reward.reward
    assert isinstance(mixture, MixtureReward)
    assert [type(part) for part in mixture.rewards] == [ModelReward, PythonReward, HTTPReward]
    assert mixture.rewards[1].timeout == 5
    assert mixture.rewards[0].placement == "cpu"


def test_wrong_option_in_yaml_names_it():
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Reward, "reward")
    with pytest.raises(ArgumentError, match="timeouts"):
        parser.parse_object({"reward": {"class_path": "PythonReward", "init_args": {"function": "m:f", "timeouts": 1}}})
