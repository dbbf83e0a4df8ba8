# %% [markdown]
# # First PPO, with your own reward
# A language model learns from a function that you write. Nothing is downloaded: the model is a tiny Llama with random weights
# whose tokens are whole words, so that it babbles. The reward is any Python function from responses to numbers; this one
# wants six words.
#
# ## A model
# In your own work this is a hub name or a folder, such as `"Qwen/Qwen2.5-0.5B-Instruct"`.

# %%
from pathlib import Path

from lit_rlhf.pocket.tokenizer import write_base_model

write_base_model(Path("base"), seed=0)

# %% [markdown]
# ## A reward
# It gets lists of equal length and returns one number for each response. It may have any signature of
# [PPO from Python](../python.md#a-function-as-reward).


# %%
def six_words(prompts, responses):
    return [-abs(len(response.split()) - 6) / 6 for response in responses]


print(six_words(["", ""], ["one two three four five six", "one"]))

# %% [markdown]
# ## PPO
# One epoch is one iteration: 64 responses, then two updates of 32. The optimizer's rate is that of a model of 0.4 million
# weights; a large one wants 1e-6 to 1e-5. There is no SFT model to stay near, so the KL penalty is off.

# %%
import lightning as L
from lightning.pytorch.loggers import CSVLogger

from lit_rlhf import FixedKL, PPOModule, RolloutDataModule

L.seed_everything(0, verbose=False)
module = PPOModule(
    "base",
    six_words,
    sampling={"max_response_length": 16},
    optimizer={"lr": 3e-3, "critic_lr": 3e-3},
    schedule={"kind": "constant", "warmup": 0},
    kl_controller=FixedKL(coef=0.0),
    shaping={"normalize": True},
)
data = RolloutDataModule(
    train=[f"What do you know about number {n} ?" for n in range(256)], rollout_batch_size=64, minibatch_size=32
)
trainer = L.Trainer(
    max_epochs=24,
    accelerator="cpu",
    logger=CSVLogger("logs", name="first"),
    log_every_n_steps=1,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
)
trainer.fit(module, data)

# %% [markdown]
# ## What happened
# Every number is defined in [every metric](../metrics.md). The score rises from six words too many to about one, and the
# entropy falls. The length in *tokens* is back at the limit in the end: the function counts what `split()` finds, and the
# policy has found six words in sixteen tokens. It does what is paid for, which is the first thing to know about PPO.

# %%
import matplotlib.pyplot as plt

from lit_rlhf.reports.plots import read_metrics

metrics = read_metrics(Path(trainer.logger.log_dir) / "metrics.csv")
figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), layout="constrained")
for ax, name in zip(axes, ("rollout/score", "rollout/response_length", "rollout/entropy")):
    ax.plot(list(metrics[name]), list(metrics[name].values()), color="#0072B2")
    ax.set(title=name, xlabel="iteration")
for at in (0, 12, 23):
    print(
        f"iteration {at:2d}: score {metrics['rollout/score'][at]:6.3f}, length {metrics['rollout/response_length'][at]:5.2f}"
    )
assert metrics["rollout/score"][23] > metrics["rollout/score"][0] + 0.5, "it did not learn"

# %% [markdown]
# ## The model
# `export` writes a Hugging Face folder, which anything that reads those can load.

# %%
module.export("six-words")
print(sorted(path.name for path in Path("six-words").iterdir()))

# %% [markdown]
# Next: [reading a run](../reading-a-run.md), [a reward model in place of the function](reward_model.md), or the same with your
# own model: change the name, and see [which models](../models.md).
