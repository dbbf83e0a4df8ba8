# %% [markdown]
# # Two runs and their report
# Two PPO runs that differ in one number, read from the first look to the verdict: the panels, the monitors, the text itself,
# `lit-rlhf report` and `lit-rlhf compare`. What each way of failing looks like is in [reading a run](../reading-a-run.md).
#
# ## A reward that can be fooled
# Wanted are *different* words that begin with s. Paid is every word that begins with s. The difference between the two is
# what a run must be read for, and in real work nobody has written it down; here the wanted thing is computed beside the
# paid one, as `val/gold`.

# %%
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import CSVLogger

from lit_rlhf import (
    CollapseDetector,
    FixedKL,
    PPOModule,
    RepetitionMonitor,
    RewardDistributionMonitor,
    RolloutDataModule,
    SampleLogger,
)
from lit_rlhf.pocket.tokenizer import write_base_model

write_base_model(Path("base"), seed=0)


def words_in_s(prompts, responses):
    return [float(sum(word.startswith("s") for word in response.split())) for response in responses]


def different_words_in_s(prompts, responses):
    return [float(len({word for word in response.split() if word.startswith("s")})) for response in responses]


print(words_in_s([""], ["soda ships soda soda"]), different_words_in_s([""], ["soda ships soda soda"]))

# %% [markdown]
# ## Two runs
# `held` pays 0.1 for each nat that it leaves the reference, `free` pays nothing. The monitors write beside the log:
# `samples.jsonl`, `reward_histograms.jsonl`, `collapse.jsonl`. The detector's threshold is in nats per token and made for
# trained language models; this model starts as noise and may move further.

# %%
SUBJECTS, OBJECTS = "dogs cats crows cooks boats robots".split(), "soda ships books knives".split()
PROMPTS = [f"what do {subject} know about {thing} ?" for subject in SUBJECTS for thing in OBJECTS]


def fit(name, kl_coef):
    L.seed_everything(0, verbose=False)
    module = PPOModule(
        "base",
        words_in_s,
        sampling={"max_response_length": 16},
        eval_sampling={"max_response_length": 16},
        optimizer={"lr": 3e-3, "critic_lr": 3e-3},
        schedule={"kind": "constant", "warmup": 0},
        kl_controller=FixedKL(coef=kl_coef),
        shaping={"normalize": True},
        eval_rewards={"gold": different_words_in_s},
    )
    data = RolloutDataModule(train=PROMPTS * 4, val=PROMPTS, rollout_batch_size=64, minibatch_size=32)
    monitors = [RepetitionMonitor(), RewardDistributionMonitor(), SampleLogger(fixed=1, random=0)]
    trainer = L.Trainer(
        max_epochs=28,
        accelerator="cpu",
        default_root_dir=name,
        logger=CSVLogger(name, name="csv"),
        log_every_n_steps=1,
        check_val_every_n_epoch=4,
        callbacks=[*monitors, CollapseDetector(action="warn", rule={"threshold": 2.0})],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, data)


fit("held", kl_coef=0.1)
fit("free", kl_coef=0.0)

# %% [markdown]
# ## First look: the panels
# Score, KL, perplexity, and the judge that does not train. The length is left out: nothing here ends a response early.

# %%
import matplotlib.pyplot as plt

from lit_rlhf.reports.plots import read_metrics

runs = {name: read_metrics(Path(name) / "csv" / "version_0" / "metrics.csv") for name in ("held", "free")}
figure, axes = plt.subplots(2, 2, figsize=(8, 4.6), layout="constrained")
for ax, name in zip(axes.flat, ("rollout/score", "rollout/kl", "rollout/perplexity", "val/gold")):
    for (run, metrics), (color, dash) in zip(runs.items(), (("#0072B2", "-"), ("#D55E00", "--"))):
        ax.plot(list(metrics[name]), list(metrics[name].values()), dash, color=color, label=run)
    ax.set(title=name, xlabel="iteration")
axes[0, 0].legend(frameon=False)

# %% [markdown]
# By its score `free` is the better run by far. Its gold score rises first, higher than that of `held`, and then comes down: a
# policy stops learning what you want some time before its reward stops rising. The KL of `held` has a plateau, that of
# `free` has none: this is what can be seen without a gold score.
#
# ## Then the numbers, in this order
# 1. Is it PPO at all: `update/ratio_drift` is 0 at every first update.
# 2. Are the steps sane: `update/approx_kl` and `update/clip_fraction`. The first updates here are too large (an untrained
#    model, a rate that is high from the first step on), later ones are well.
# 3. Does the critic follow: `update/explained_variance` above 0.
# 4. Do responses repeat themselves: `rollout/distinct_4`.

# %%
NAMES = (
    "update/ratio_drift",
    "update/approx_kl",
    "update/clip_fraction",
    "update/explained_variance",
    "rollout/distinct_4",
)
for run, metrics in runs.items():
    print(f"{run:27s} iteration 0       12       27")
    for name in NAMES:
        print(f"  {name:25s}", *(f"{metrics[name][at]:11.3f}"[-9:] for at in (0, 12, 27)))

# %% [markdown]
# ## Then the text
# `samples.jsonl` follows the same held-out prompt from the start. Nothing replaces reading it.

# %%
import json

for run in runs:
    for line in (Path(run) / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        print(f"{run} {row['iteration']:2d}: score {row['score']:4.1f}  {row['response'][:72]}")

# %% [markdown]
# ## What the detector said
# `CollapseDetector` reads KL, length, perplexity, the tail of the scores and repetition together, and no gold score:
# [seeing a collapse coming](../collapse.md). It speaks while the gold score of `free` still rises, and leaves `held` alone.
# With `action: stop` or `rollback` it would have ended the run or gone back.

# %%
gold = runs["free"]["val/gold"]
print("gold score of free by iteration:", {int(at): round(value, 1) for at, value in gold.items()})
for run in runs:
    file = Path(run) / "collapse.jsonl"
    flags = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    print(run, [(flag["iteration"], flag["fired"]) for flag in flags])

# %% [markdown]
# ## The report, and who wins
# One page that loads nothing from anywhere, with every panel of both runs, the score's distribution over time, flags, samples
# and a view of each token. Then the saved answers to the held-out prompts, judged by the score that was paid and by the
# one that was wanted.

# %%
import subprocess
import sys


def shell(command):
    print("$", command)
    words = command.replace("lit-rlhf", f"{sys.executable} -m lit_rlhf").split()
    print(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


shell("lit-rlhf report held free --out report.html")
shell("lit-rlhf compare held=held free=free --judge ScoreJudge --judge.score gold --judge.tie_margin 0.5 --out judged")
paid = {run: list(metrics["val/score"].values())[-1] for run, metrics in runs.items()}
wanted = {run: list(metrics["val/gold"].values())[-1] for run, metrics in runs.items()}
assert paid["free"] > paid["held"] and wanted["free"] < wanted["held"], "the reward was not fooled"
assert max(gold.values()) > list(gold.values())[-1] + 1, "the gold score did not turn"

# %% [markdown]
# The run with the higher reward has lost. What to do next time is what [reading a run](../reading-a-run.md#reward-hacking)
# says: a KL penalty, a judge that does not train, and the policy of before (`BestPolicy`).
