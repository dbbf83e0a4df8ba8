"""Benchmarks: an iteration of PPO and a stretch of reward-model training, alone or beside another library."""
