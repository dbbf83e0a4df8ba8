"""Sources of reward: an ABC and one file per source."""
