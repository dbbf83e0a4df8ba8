"""Is this reward model any good? One report from scored preference pairs, as JSON and as a self-contained page."""

from lit_rlhf.reward_report.pairs import ScoredPair, scored_pairs
from lit_rlhf.reward_report.report import RewardReport

__all__ = ["RewardReport", "ScoredPair", "scored_pairs"]
