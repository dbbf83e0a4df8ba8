"""Numbers: win rates, intervals, result tables, the reward-model report. Pages are made in `reports/`."""
