"""`bin/real-model`: PPO on a pretrained chat model and human preferences."""
