# %% [markdown]
# # A TRL script, written here
# A PPO script as TRL has it, option by option in this library, and run; then a GRPO script with two reward functions.
# [Coming from TRL](../coming-from-trl.md) has every name side by side. The TRL code on this page is not run.
#
# ## PPO in TRL
#
# ```py
# config = PPOConfig(
#     total_episodes=1280,
#     per_device_train_batch_size=16,
#     gradient_accumulation_steps=4,  # 64 responses a batch
#     num_mini_batches=2,
#     num_ppo_epochs=2,  # four updates of 32
#     response_length=16,
#     stop_token="eos",
#     temperature=1.0,
#     missing_eos_penalty=1.0,
#     kl_coef=0.05,
#     cliprange=0.2,
#     vf_coef=0.1,
#     cliprange_value=0.2,
#     gamma=1.0,
#     lam=0.95,
#     learning_rate=3e-3,
#     output_dir="out",
# )
# trainer = PPOTrainer(
#     args=config,
#     processing_class=tokenizer,
#     model=policy,
#     ref_model=ref_policy,
#     reward_model=reward_model,
#     value_model=value_model,
#     train_dataset=dataset,
# )
# trainer.train()
# ```
#
# ## The same here
# `dataset` stays what it is, with text in place of `input_ids`. The reward may be a model (`ModelReward("folder")`) or a
# function; this one has TRL's signature. The model is tiny and untrained, so that the page runs in seconds.

# %%
from pathlib import Path

from datasets import Dataset

from lit_rlhf.pocket.tokenizer import write_base_model

write_base_model(Path("policy"), seed=0)
questions = [
    f"what do {who} know about {what} ?" for who in "dogs cats boats cooks".split() for what in "soda tea".split()
]
dataset = Dataset.from_dict({"prompt": questions * 16, "wanted": [4, 5, 6, 7] * 32})


def near_wanted(completions, wanted, **kwargs):
    return [-abs(len(text.split()) - count) / count for text, count in zip(completions, wanted)]


# %% [markdown]
# Sizes are those of the whole job, whatever the number of devices: `rollout_batch_size` is TRL's batch, `minibatch_size` a
# mini-batch, and `micro_batch_tokens` (not needed here) what fits into memory at once. One epoch of the Trainer is one
# batch, so `max_epochs` is `total_episodes / 64`. Where the defaults differ, TRL's are written out.

# %%
import lightning as L
from lightning.pytorch.loggers import CSVLogger

from lit_rlhf import GAE, ClippedSurrogate, ClippedValueLoss, FixedKL, PPOModule, RolloutDataModule

L.seed_everything(0, verbose=False)
module = PPOModule(
    "policy",  # model; the reference is a frozen copy of it, the value model is made from it
    near_wanted,
    sampling={"max_response_length": 16, "temperature": 1.0},
    shaping={"normalize": False, "clip": None, "missing_eos_penalty": 1.0},
    kl_controller=FixedKL(coef=0.05),
    policy_loss=ClippedSurrogate(clip_range=0.2),
    critic_loss=ClippedValueLoss(clip_range=0.2),
    loss={"vf_coef": 0.1, "whiten_advantages": True},
    estimator=GAE(gamma=1.0, gae_lambda=0.95),
    optimizer={"lr": 3e-3, "critic_lr": 3e-3, "betas": (0.9, 0.999), "eps": 1e-8, "max_grad_norm": 1.0},
    schedule={"kind": "linear", "warmup": 0, "min_ratio": 0.0},
)
data = RolloutDataModule(train=dataset, rollout_batch_size=64, minibatch_size=32, ppo_epochs=2)
trainer = L.Trainer(
    max_epochs=1280 // 64,
    accelerator="cpu",
    default_root_dir="out",
    logger=CSVLogger("out", name="ppo"),
    log_every_n_steps=1,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
)
trainer.fit(module, data)
module.export("out/final")  # save_model

# %% [markdown]
# ## Its numbers under their old names
# The right column is defined in [every metric](../metrics.md): means are over all tokens or responses of the whole batch.

# %%
from lit_rlhf.reports.plots import read_metrics

metrics = read_metrics(Path(trainer.logger.log_dir) / "metrics.csv")
names = {
    "objective/scores": "rollout/score",
    "objective/kl": "rollout/kl_sequence",
    "objective/entropy": "rollout/entropy",
    "policy/approxkl_avg": "update/approx_kl",
    "policy/clipfrac_avg": "update/clip_fraction",
    "loss/value_avg": "loss/value",
    "val/ratio": "update/ratio",
}
print(f"{'TRL':20s} {'here':22s} first batch   last batch")
for old, new in names.items():
    first, *_, last = metrics[new].values()
    print(f"{old:20s} {new:22s} {first:11.3f}  {last:11.3f}")
score = list(metrics["rollout/score"].values())
assert score[-1] > score[0] + 0.3, "it did not learn"

# %% [markdown]
# What is not the same: TRL divides the logits by the temperature before it takes log-probabilities, here they are of the raw
# logits, so 1.0 is the temperature at which the two agree; `objective/entropy` of TRL is the sum over a response of the drawn
# tokens' negative log-probabilities, `rollout/entropy` the mean entropy of the distribution per token; TRL averages over
# micro-batches, here a loss is divided by the tokens of the whole mini-batch, so that the size of a micro-batch changes
# nothing; `objective/scores` has the missing-EOS penalty in it, `rollout/score` is what the reward gave.
#
# ## GRPO, with two reward functions
#
# ```py
# GRPOTrainer(
#     model="policy",
#     reward_funcs=[near_wanted, no_repeats],
#     train_dataset=dataset,
#     args=GRPOConfig(reward_weights=[1.0, 0.5], num_generations=4, max_completion_length=16, epsilon=0.2),
# )
# ```

# %%
from lit_rlhf import GroupNormalized, MixtureReward


def no_repeats(completions, **kwargs):
    return [len(set(text.split())) / max(1, len(text.split())) for text in completions]


L.seed_everything(0, verbose=False)
module = PPOModule(
    "policy",
    MixtureReward([near_wanted, no_repeats], weights=[1.0, 0.5]),
    estimator=GroupNormalized(4),  # no critic; four responses for each prompt
    kl_controller=FixedKL(coef=0.0),  # GRPOConfig's beta, 0 unless you set it
    sampling={"max_response_length": 16},
    shaping={"normalize": False, "clip": None},
    optimizer={"lr": 3e-3},
    schedule={"kind": "linear", "warmup": 0, "min_ratio": 0.0},
)
trainer = L.Trainer(
    max_epochs=12,
    accelerator="cpu",
    logger=CSVLogger("out", name="grpo"),
    log_every_n_steps=1,
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
)
trainer.fit(module, RolloutDataModule(train=dataset, rollout_batch_size=64, minibatch_size=64))
metrics = read_metrics(Path(trainer.logger.log_dir) / "metrics.csv")
first, *_, last = metrics["rollout/score"].values()
print(f"score {first:.3f} -> {last:.3f}; a critic: {module.critic}; its loss is logged: {'loss/value' in metrics}")
assert last > first

# %% [markdown]
# `LeaveOneOut(4)` is RLOO. The rest of what a TRL script does has its own page: [reward models](reward_model.md),
# [vLLM](../engines.md), [adapters](../adapters.md), [more than one device](to_slurm.md).
