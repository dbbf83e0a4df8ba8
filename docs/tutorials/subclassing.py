# %% [markdown]
# # Subclassing three stages
# Every stage of an iteration is one method of `PPOModule`. Three of them, each changed in a few lines: what a response is
# paid, what an advantage is, and the loss.

# %%
from pathlib import Path

import lightning as L
import torch

from lit_rlhf import PPOModule, RolloutDataModule
from lit_rlhf.pocket.tokenizer import write_base_model

write_base_model(Path("base"), seed=0)


class Mine(PPOModule):
    """A small price for every token, advantages of cut responses set to zero, and a wider clip upwards."""

    def shape_rewards(self, scored):
        rewards = super().shape_rewards(scored)
        return rewards - 0.01 * scored.response_mask

    def estimate_advantages(self, scored, rewards):
        advantages, returns = super().estimate_advantages(scored, rewards)
        return advantages * scored.ended[:, None], returns

    def policy_token_loss(self, logprobs, old_logprobs, advantages, taken):
        ratio = (logprobs - old_logprobs).exp()
        held = ratio.clamp(0.8, 1.28)
        loss = torch.maximum(-ratio * advantages, -held * advantages)
        return loss, loss > -ratio * advantages


# %% [markdown]
# `scored` and `taken` carry the columns that exist by then, and no others: [data between the stages](../reference/types.md).
# Masking, dividing by the global token count, logging and everything distributed stay the module's business.
#
# ## It is a module like any other


# %%
def reward(prompts, responses):
    return [-abs(len(response.split()) - 6) / 6 for response in responses]


def run(kind):
    L.seed_everything(0, verbose=False)
    module = kind("base", reward, sampling={"max_response_length": 12}, optimizer={"lr": 3e-3, "critic_lr": 3e-3})
    data = RolloutDataModule(
        train=[f"Tell me about {n} ." for n in range(64)], rollout_batch_size=32, minibatch_size=16
    )
    trainer = L.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, data)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


plain, mine = run(PPOModule), run(Mine)
for name in ("rollout/score", "rollout/reward_total", "rollout/response_length", "update/clip_fraction"):
    print(f"{name:26s} PPOModule {plain[name]:7.3f}   Mine {mine[name]:7.3f}")
assert mine["rollout/reward_total"] != plain["rollout/reward_total"]

# %% [markdown]
# In YAML it is `class_path: my_package.Mine`. [Extending](../extending.md) has an example of every hook, each run by a test.
