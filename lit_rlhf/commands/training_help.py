"""`lit-rlhf fit --help` in one screen, from text: the parser's own is 600 lines and needs everything imported."""

from __future__ import annotations

HELP = """\
usage: lit-rlhf {verb} --config FILE [--config FILE ...] [--KEY VALUE ...]

{what}
A config is YAML with the keys `trainer`, `model` and `data`; later files and options on the command line win.

  -c, --config FILE          YAML; preset:NAME for one that ships (`lit-rlhf configs`)
  --ckpt_path last|PATH      {ckpt}
  --seed_everything N        seed of everything (default: 0)
  --print_config             every key with its value, and nothing runs
  --trainer.KEY VALUE        flags of Lightning's Trainer: max_epochs, devices, strategy, precision, default_root_dir
                             (where everything is written), callbacks, logger, ...
  --model CLASS, --model.KEY VALUE
                             PPOModule, SFTModule, RewardModelModule, or a class of your own: my_module.MyClass
  --data CLASS, --data.KEY VALUE
                             RolloutDataModule, SFTDataModule, PreferenceDataModule
  `null` switches an optional key off: --model.shaping.clip null

Every option of a class, with what it means:
  lit-rlhf {verb} --model.help PPOModule
  lit-rlhf {verb} --data.help RolloutDataModule
  lit-rlhf {verb} --model PPOModule --model.reward.help PythonReward     (a Python function as reward)
  lit-rlhf {verb} --trainer.callbacks.help CollapseDetector
Pages: docs/ppo.md (PPO option by option), docs/lightning.md (every flag and callback of Lightning's), docs/data.md.
"""

WHAT = {
    "fit": ("Train.", "go on with the newest checkpoint of the run directory, or with this one"),
    "validate": ("Measure on the validation data.", "the checkpoint to measure, instead of the model as configured"),
    "test": ("Measure on the test data.", "the checkpoint to measure, instead of the model as configured"),
    "predict": ("Answer prompts.", "the checkpoint that answers, instead of the model as configured"),
}


def training_help(verb: str) -> str:
    """The help of `fit`, `validate`, `test` or `predict`."""
    what, ckpt = WHAT[verb]
    return HELP.format(verb=verb, what=what, ckpt=ckpt)
