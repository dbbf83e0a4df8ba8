# %% [markdown]
# # PPO-max, stage by stage
# One iteration, with every stage's tensors, the paper's equation (Zheng et al. 2023), and the function that computes it. A
# real rollout of a tiny model is taken apart and put together again: each stage must give the bits that the module has.
#
# ## A rollout
# Four responses of at most eight tokens. `collect()` runs the stages; a callback hands us what came out of them.

# %%
from pathlib import Path

import lightning as L
import torch

from lit_rlhf import FixedKL, GAE, PPOModule, RolloutCallback, RolloutDataModule
from lit_rlhf import functional as F
from lit_rlhf.pocket.tokenizer import write_base_model

torch.set_printoptions(precision=3, sci_mode=False, linewidth=100)
L.seed_everything(0, verbose=False)
write_base_model(Path("policy"), seed=0)
write_base_model(Path("sft"), seed=1)  # another model as the reference, so that the KL is not 0


class Keep(RolloutCallback):
    def on_rollout_end(self, trainer, pl_module, experience):
        self.experience = experience


def reward(prompts, responses):
    return [float(len(response)) for response in responses]  # characters


keep = Keep()
module = PPOModule(
    "policy",
    reward,
    reference={"path": "sft"},
    sampling={"max_response_length": 8, "temperature": 0.8},
    kl_controller=FixedKL(coef=0.05),
    shaping={"normalize": True, "clip": 0.8},
    estimator=GAE(gamma=1.0, gae_lambda=0.9),
)
data = RolloutDataModule(train=[f"Tell me about {n} ." for n in range(4)], rollout_batch_size=4, minibatch_size=4)
quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False, "logger": False}
L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[keep], **quiet).fit(module, data)
x = keep.experience
print(x.response_mask.int())

# %% [markdown]
# The mask is 1 up to and including the end of each response. Everything below is zero, or nothing at all, outside of it.
#
# ## 1. The distance to the reference
#
# $$d_t = \log \pi(y_t) - \log \pi_{ref}(y_t)$$
#
# of the raw logits, whatever the temperature was.

# %%
d = F.k1(F.keep(x.old_logprobs, x.response_mask), F.keep(x.ref_logprobs, x.response_mask))
print(d)

# %% [markdown]
# ## 2. Scores, normalized and clipped (eq. 18)
#
# $$\tilde r = \operatorname{clip}\left(\frac{r - \bar r}{\sigma(r)}, -\delta, \delta\right)$$
#
# with the moments of all scores so far, this batch's included.

# %%
moments = F.RunningMoments().update_from(x.scores)
shaped = F.shape_scores(x.scores, moments=moments, normalize=True, clip=0.8)
print("raw   ", x.scores, f" mean {moments.mean:.3f}, std {moments.std:.3f}")
print("shaped", shaped)

# %% [markdown]
# ## 3. Rewards per token (eq. 19)
#
# $$r_t = -\eta\, d_t + [t = T]\; \tilde r$$

# %%
rewards = F.token_rewards(shaped, x.old_logprobs, x.ref_logprobs, x.response_mask, kl_coef=0.05)
print(rewards)
assert torch.equal(rewards, x.rewards)

# %% [markdown]
# ## 4. Advantages (eq. 9 and 10)
#
# $$\delta_t = r_t + \gamma V_{t+1} - V_t, \qquad \hat A_t = \delta_t + \gamma\lambda \hat A_{t+1}, \qquad R_t = \hat A_t + V_t$$

# %%
advantages, returns = F.generalized_advantage_estimate(
    x.rewards, x.old_values, x.response_mask, gamma=1.0, gae_lambda=0.9
)
print(advantages)
assert torch.equal(advantages, x.advantages) and torch.equal(returns, x.returns)

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 4, figsize=(10, 2.4), layout="constrained")
row = int(x.response_mask.sum(1).argmax())
tokens = x.response_mask[row]
for ax, (name, values) in zip(
    axes, {"d": d, "reward": rewards, "value": x.old_values, "advantage": advantages}.items()
):
    ax.bar(range(int(tokens.sum())), values[row][tokens], color="#0072B2")
    ax.axhline(0, color="#999999", linewidth=0.8)
    ax.set(title=f"{name} of response {row}", xlabel="token")

# %% [markdown]
# ## 5. The policy's loss (eq. 15)
#
# $$L = -\min\left(\rho \hat A,\ \operatorname{clip}(\rho, 1 - \epsilon, 1 + \epsilon)\hat A\right), \qquad \rho = \pi / \pi_{old}$$
#
# At the first update $\rho$ is exactly 1, so the loss is $-\hat A$. After a step some ratios leave the band; where the
# advantage would push them further, the gradient is cut.

# %%
loss, clipped = F.clipped_policy_loss(x.old_logprobs, x.old_logprobs, advantages, clip_range=0.2)
assert torch.equal(F.keep(loss, x.response_mask), -advantages)
moved = x.old_logprobs + 0.3 * torch.randn(x.old_logprobs.shape, generator=torch.Generator().manual_seed(0))
loss, clipped = F.clipped_policy_loss(moved, x.old_logprobs, advantages, clip_range=0.2)
print(f"after a made-up step: {clipped[x.response_mask].float().mean():.0%} of the tokens are clipped")

# %% [markdown]
# ## 6. The critic's loss
#
# $$\tfrac12 \max\left((V - R)^2, (\operatorname{clip}(V, V_{old} - c, V_{old} + c) - R)^2\right)$$

# %%
value_loss, _ = F.value_loss(x.old_values, x.old_values, returns, clip_range=0.2)
print("mean over tokens:", F.normalized_sum(value_loss, x.response_mask, x.response_mask.sum()).item())

# %% [markdown]
# Both are summed over tokens and divided by the token count of the *global* minibatch: neither ranks nor micro-batches change
# the result. [PPO, option by option](../ppo.md) has every other switch, and what the paper and its release do.
