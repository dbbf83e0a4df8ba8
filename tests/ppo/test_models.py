"""PPO's models built without a module or a trainer."""

from __future__ import annotations

import pytest
import torch

from lit_rlhf.config import ModelConfig
from lit_rlhf.ppo.config import CriticConfig, ReferenceConfig
from lit_rlhf.ppo.models import PPOModels
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rewards.python import PythonReward


def models(world, **options) -> PPOModels:
    defaults = {
        "reference": ReferenceConfig(),
        "critic": CriticConfig(),
        "reward": ModelReward(str(world / "reward")),
        "model": ModelConfig(),
    }
    return PPOModels(str(world / "policy"), **{**defaults, **options})


def test_all_of_them_from_their_places(world) -> None:
    built = models(world, reference=ReferenceConfig(dtype="bfloat16"))
    tokenizer = built.load_tokenizer()
    built.check_vocabularies(tokenizer, with_critic=True, with_reference=True)
    policy = built.build_policy()
    reference, critic = built.build_reference(policy), built.build_critic(policy)
    assert reference is not None
    assert critic is not None
    assert reference.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in reference.model.parameters())
    assert torch.equal(policy.lm_head.weight.bfloat16(), reference.model.lm_head.weight)
    assert built.sources(with_critic=True)["critic"] == str(world / "reward")


def test_none_is_none(world) -> None:
    built = models(world, reference=None, critic=None)
    assert built.build_reference(None) is None
    assert built.build_critic(None) is None
    assert built.sources(with_critic=False) == dict.fromkeys(("policy", "tokenizer"), str(world / "policy"))


def test_a_fresh_critic_and_one_that_cannot_be(world) -> None:
    built = models(world, critic=CriticConfig(init="policy"))
    assert built.critic_path == str(world / "policy")
    program = models(world, reward=PythonReward("builtins:len"), critic=CriticConfig(init="reward"))
    with pytest.raises(ValueError, match=r"critic.init: reward` needs a reward that is a model; PythonReward is not"):
        program.check_vocabularies(None, with_critic=True, with_reference=False)


def test_where_the_critic_comes_from_if_nothing_is_said(world) -> None:
    assert models(world, critic=CriticConfig()).critic_path == str(world / "reward")
    assert models(world, reward=PythonReward("builtins:len"), critic=CriticConfig()).critic_path == str(
        world / "policy"
    )
