"""Win rates, reward-model reports, run reports."""
