# %% [markdown]
# # Monitors in somebody else's trainer
# The monitors are Lightning callbacks that know no module of this library. Any LightningModule that calls `emit_rollout` once an
# iteration has KL, perplexity, length, repetition, score shape and the collapse detector.
#
# ## A trainer that is not ours
# REINFORCE on a policy without any model: one table of logits, ten tokens, responses of up to twelve, token 0 ends them. Its
# reward is fooled by repetition.

# %%
from types import SimpleNamespace

import lightning as L
import torch

from lit_rlhf.callbacks import emit_rollout


class Reinforce(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(12, 10))

    def train_dataloader(self):
        return torch.zeros(1, 1)  # one step an epoch

    def configure_optimizers(self):
        return torch.optim.Adam([self.logits], lr=0.2)

    def training_step(self, batch, batch_idx):
        policy = torch.distributions.Categorical(logits=self.logits)
        with torch.no_grad():
            ids = policy.sample((64,))
            ended = (ids == 0).cumsum(1)
            mask = (ended - (ids == 0).int()) == 0  # up to and including the first 0
            scores = ((ids == 7) & mask).sum(1).float()  # the more 7s, the better
            reference = torch.full_like(ids, 0.1, dtype=torch.float32).log()
        logprobs = policy.log_prob(ids)
        emit_rollout(
            self.trainer,
            self,
            SimpleNamespace(
                response_ids=ids,
                response_mask=mask,
                old_logprobs=logprobs.detach(),
                ref_logprobs=reference,
                scores=scores,
                ended=ended[:, -1] > 0,
            ),
        )
        return -(((scores - scores.mean())[:, None] * logprobs * mask).sum() / mask.sum())


# %% [markdown]
# `emit_rollout` takes any object with those columns; masks are True = keep. That is all.
#
# ## With the monitors

# %%
from lit_rlhf.callbacks import CollapseDetector, KLMonitor, PerplexityMonitor, RepetitionMonitor, ResponseLengthMonitor


class Rows(L.Callback):
    def __init__(self):
        self.rows = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


L.seed_everything(0, verbose=False)
rows = Rows()
monitors = [
    KLMonitor(),
    PerplexityMonitor(),
    ResponseLengthMonitor(),
    RepetitionMonitor(),
    CollapseDetector(action="warn"),
]
L.Trainer(
    max_epochs=30,
    accelerator="cpu",
    default_root_dir="run",
    logger=False,
    callbacks=[*monitors, rows],
    enable_progress_bar=False,
    enable_model_summary=False,
    enable_checkpointing=False,
).fit(Reinforce())
for at in (0, 10, 29):
    print(
        at, {name: round(rows.rows[at][name], 3) for name in ("rollout/kl", "rollout/perplexity", "rollout/distinct_4")}
    )

# %% [markdown]
# It has settled on one token. What the four signals say together:

# %%
import matplotlib.pyplot as plt

names = ("rollout/kl", "rollout/perplexity", "rollout/response_length", "monitor/collapse/index")
figure, axes = plt.subplots(1, 4, figsize=(10, 2.4), layout="constrained")
for ax, name in zip(axes, names):
    ax.plot([row.get(name, float("nan")) for row in rows.rows], color="#0072B2")
    ax.set(title=name.removeprefix("rollout/"), xlabel="epoch")
flags = [at for at, row in enumerate(rows.rows) if row.get("monitor/collapse/flagged")]
print("flagged in epochs", flags)
assert flags, "the detector should have seen this"

# %% [markdown]
# [Monitors](../monitors.md) lists what each reads and logs, and what a module may offer besides.
