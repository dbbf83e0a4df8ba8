"""LightningDataModules: SFT text, preference pairs, rollouts."""
