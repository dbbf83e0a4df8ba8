# %% [markdown]
# # From laptop to Slurm
# One YAML: here it runs in one process, then on two DDP ranks, then it is killed in the middle and goes on, and at last it
# becomes a Slurm job. Everything but the job itself is run for real, on a CPU.
#
# ## A run as files
# A model, prompts, a reward in a file beside them, and the config. One epoch is one iteration: 32 responses, two updates.

# %%
from pathlib import Path

from lit_rlhf.pocket.tokenizer import write_base_model

write_base_model(Path("base"), seed=0)
Path("prompts.jsonl").write_text("".join(f'{{"prompt": "tell me about {n} ."}}\n' for n in range(64)))
Path("rules.py").write_text(
    """
def six_words(prompts, responses):
    return [-abs(len(response.split()) - 6) / 6 for response in responses]
"""
)
Path("ppo.yaml").write_text(
    """
trainer:
  default_root_dir: runs/laptop
  accelerator: cpu
  max_epochs: 4
model:
  class_path: PPOModule
  init_args:
    policy: base
    reward: {class_path: PythonReward, init_args: {function: "rules:six_words"}}
    critic: {init: policy}
    sampling: {max_response_length: 12}
    optimizer: {lr: 1.0e-3, critic_lr: 1.0e-3}
data:
  class_path: RolloutDataModule
  init_args: {train: prompts.jsonl, rollout_batch_size: 32, minibatch_size: 16}
"""
)

# %% [markdown]
# ## One process

# %%
import shlex
import subprocess
import sys


def start(command):
    print("$", command)
    words = shlex.split(command.replace("lit-rlhf", f"{sys.executable} -m lit_rlhf"))
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def shell(command, show=2):
    running = start(command)
    lines = running.communicate()[0].splitlines()
    print("\n".join(lines[-show:]))
    assert running.returncode == 0, lines


shell("lit-rlhf fit --config ppo.yaml")

# %% [markdown]
# ## Two ranks
# Only `trainer` changes, and on the command line at that. Batch sizes are those of all ranks together, every loss is divided by
# the token count of all ranks, and prompts and random numbers are dealt out the same way; so the result is the same up to
# rounding, and no learning rate has to be found again.

# %%
shell("lit-rlhf fit --config ppo.yaml --trainer.strategy ddp --trainer.devices 2 --trainer.default_root_dir runs/two")

# %%
import csv


def first_iteration(run):
    with next(Path(f"runs/{run}").rglob("metrics.csv")).open() as file:
        rows = [row for row in csv.DictReader(file) if row["epoch"] == "0"]
    return {name: float(text) for row in rows for name, text in row.items() if text and "time/" not in name}


one, two = first_iteration("laptop"), first_iteration("two")
shared = sorted(name for name in one.keys() & two.keys() if name.startswith(("rollout/", "update/")))
far = max(shared, key=lambda name: abs(one[name] - two[name]))
print(f"of {len(shared)} numbers of the first iteration {far} differs most: {one[far]:.7g} and {two[far]:.7g}")
for name in shared:
    assert abs(one[name] - two[name]) < 1e-3 * max(1.0, abs(one[name])), name

# %% [markdown]
# Rounding is not nothing. A token whose random number lies within rounding of the boundary to the next one is drawn otherwise,
# once in many thousand; from that response on the two are runs of their own, as they are after any change of batch sizes.

# %% [markdown]
# On GPUs it is `--trainer.accelerator cuda --trainer.devices 8 --trainer.precision bf16-mixed`, for 7B with `--trainer.strategy
# lit_deepspeed_stage_2`: [the table](../scaling.md). `lit-rlhf plan --config ...` says beforehand whether it fits.
#
# ## Killed in the middle
# A run saves at the end of each iteration (and every ten minutes inside a long one). This one is killed without warning as soon
# as there is a checkpoint. The same command with `--ckpt_path last` goes on; in an empty folder it would start.

# %%
import time

from safetensors.torch import load_file


def largest_difference(run, other):
    a, b = (load_file(f"runs/{each}/export/final/model.safetensors") for each in (run, other))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


command = "lit-rlhf fit --config ppo.yaml --trainer.default_root_dir runs/killed --ckpt_path last"
running = start(command)
while not list(Path("runs/killed/checkpoints").glob("*.ckpt")):
    assert running.poll() is None, running.communicate()[0]
    time.sleep(0.05)
running.kill()  # SIGKILL: nothing can be saved now
running.communicate()
print(
    "exit code", running.returncode, "\nleft:", sorted(path.name for path in Path("runs/killed/checkpoints").iterdir())
)
shell(command)
print("a weight differs from the undisturbed run's by up to", largest_difference("laptop", "killed"))
assert largest_difference("laptop", "killed") == 0.0

# %% [markdown]
# Not one bit: prompts, random numbers, optimizer, schedule and the moments of the scores are in the checkpoint.
# SIGTERM, SIGUSR1 and SIGUSR2 are softer than a kill: the run finishes its update, saves, and ends with 128 + signal.
# [What survives what](../reliability.md) has every case and its test.
#
# ## Slurm
# `bin/launch-slurm` of the repository writes the batch script: one task a device, a signal before the time is up, requeue,
# `--ckpt_path last`. `--dry-run` prints it; without that word it is given to `sbatch`.

# %%
import lit_rlhf

launch = Path(lit_rlhf.__file__).parents[1] / "bin" / "launch-slurm"
words = "--nodes 1 --devices 8 --time 24:00:00 --dry-run -- fit --config ppo.yaml"
words += " --trainer.accelerator cuda --trainer.strategy ddp --trainer.precision bf16-mixed"
print("$ bin/launch-slurm", words)
script = subprocess.run([launch, *words.split()], capture_output=True, text=True, check=True).stdout
print(script)
assert "--requeue" in script and "--ckpt_path last" in script

# %% [markdown]
# When the time is nearly up Slurm sends SIGUSR1: the run saves, requeues itself, and comes back where it was. This was seen on
# a Slurm of one CPU node with two tasks ([the command](../reliability.md#signals-and-preemption)), not on GPUs and not on
# several machines. Clusters that want torchrun have `bin/launch-torchrun`.
