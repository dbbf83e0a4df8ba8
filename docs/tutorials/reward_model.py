# %% [markdown]
# # A reward model on your pairs, and whether it is any good
# Pairs of a preferred and a rejected response train a scorer. Accuracy alone does not say whether PPO may trust it: this page
# trains one on pairs with a trap in them and reads the report.
#
# ## Pairs
# Rows as a file would have them: `prompt`, `chosen`, `rejected` (all formats: [data](../data.md)). People here prefer answers
# with "please"; by carelessness, the preferred one is also longer in eight of ten pairs.

# %%
import random

WORDS = "you can open the door when it is warm and close it when it is cold".split()


def pairs(count, seed):
    rng, rows = random.Random(seed), []
    for n in range(count):
        short, long = rng.randint(3, 6), rng.randint(7, 10)
        lengths = (long, short) if rng.random() < 0.8 else (short, long)
        chosen, rejected = ([rng.choice(WORDS) for _ in range(length)] for length in lengths)
        chosen[rng.randrange(len(chosen))] = "please"
        rows.append({"prompt": f"Tell me about {n} .", "chosen": " ".join(chosen), "rejected": " ".join(rejected)})
    return rows


train, held_out = pairs(512, seed=1), pairs(256, seed=2)
print(train[0])

# %% [markdown]
# ## Training
# The trunk would be your SFT model; here it is an untrained one. The loss is $-\log\sigma(r_w - r_l)$ with
# $\sigma(x) = 1 / (1 + e^{-x})$: [pairwise_loss](../reference/functional.md).

# %%
from pathlib import Path

import lightning as L

from lit_rlhf import PreferenceDataModule, RewardModelModule
from lit_rlhf.pocket.tokenizer import write_base_model

L.seed_everything(0, verbose=False)
write_base_model(Path("base"), seed=0)
module = RewardModelModule("base", lm_coef=0.0, optimizer={"lr": 1e-3}, schedule={"kind": "constant", "warmup": 0})
data = PreferenceDataModule(train=train, val=held_out, test=held_out, max_length=64, batch_size=32)
trainer = L.Trainer(
    max_epochs=3,
    accelerator="cpu",
    default_root_dir="run",
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
)
trainer.fit(module, data)

# %% [markdown]
# ## Is it any good?
# `test` writes `reward_report.html` and `reward_report.json`; the headline numbers are these.

# %%
(numbers,) = trainer.test(module, data, verbose=False)
for name in sorted(numbers):
    print(f"{name:28s} {numbers[name]:.3f}")

# %% [markdown]
# Read them in this order ([reward models](../reward_models.md) has the definitions):
#
# 1. `test/accuracy` beside `test/longer_wins`, the accuracy of a rule that reads nothing. A model that is not clearly above
#    has learned the length, and PPO will make responses longer.
# 2. `test/prefers_longer` beside `test/longer_wins`, and `test/length_correlation`: the model's own taste for length.
# 3. `test/ece`: whether $\sigma(\Delta)$ is a probability.
#
# Then ask it directly, with pairs of equal length:

# %%
from lit_rlhf import ModelReward  # noqa: F401  # what PPO would take: ModelReward("my-reward-model")

even = []
for row in pairs(200, seed=3):
    words = row["chosen"].split()
    plain = [word if word != "please" else "warm" for word in words]
    even.append({"prompt": row["prompt"], "chosen": " ".join(words), "rejected": " ".join(plain)})
(equal,) = trainer.test(
    module, PreferenceDataModule(train=train, test=even, max_length=64, batch_size=32), verbose=False
)
print(f"accuracy where only the word differs: {equal['test/accuracy']:.3f}")

# %% [markdown]
# If that number is near 0.5 the model read lengths, however good its accuracy above. `module.export("my-reward-model")` is
# what PPO takes as `ModelReward("my-reward-model")`.
