"""Who wins: judges of two answers to one prompt, one file each."""

from lit_rlhf.evaluation.judges.base import Judge, Outcome, Verdict
from lit_rlhf.evaluation.judges.chat import Budget, ChatJudge, JudgeError
from lit_rlhf.evaluation.judges.human import HumanJudge
from lit_rlhf.evaluation.judges.reward import RewardJudge
from lit_rlhf.evaluation.judges.score import ScoreJudge

__all__ = [
    "Budget",
    "ChatJudge",
    "HumanJudge",
    "Judge",
    "JudgeError",
    "Outcome",
    "RewardJudge",
    "ScoreJudge",
    "Verdict",
]
