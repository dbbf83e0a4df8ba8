"""Sources of reward: an ABC and one file per source. In YAML they are named by ``class_path``."""

from lit_rlhf.rewards.base import Reward
from lit_rlhf.rewards.http import HTTPReward
from lit_rlhf.rewards.length import LengthReward
from lit_rlhf.rewards.missing_eos import MissingEOSReward
from lit_rlhf.rewards.mixture import MixtureReward
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rewards.python import PythonReward
from lit_rlhf.rewards.wrapper import RewardWrapper

__all__ = [
    "HTTPReward",
    "LengthReward",
    "MissingEOSReward",
    "MixtureReward",
    "ModelReward",
    "PythonReward",
    "Reward",
    "RewardWrapper",
]
