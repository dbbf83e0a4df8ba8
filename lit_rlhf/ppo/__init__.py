"""What is PPO and needs no Lightning: options, estimators, KL control, batch plan, minibatches, metrics."""
