"""LightningModules: SFT, reward model and PPO."""
