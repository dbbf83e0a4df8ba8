"""A stranger's first tries in Python, right and wrong ones: what `tests.soak.trials` runs beside its command lines.

Each try is a line or two of Python with the names of :func:`names` at hand. Where it must be refused, words are given
that the message must have. It **works**, is refused in **one line** with those words (an error that is written for
users, a warning of this library, or Python's own ``TypeError`` of a call), in a **misleading** way, with a
**traceback** (any other error), or is **silent**: nothing is said though it must be.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch

import lit_rlhf
from lit_rlhf.user_errors import PACKAGE, message_for_user
from tests.modules.tiny_ppo import make_trainer

WORKS = ""
PROMPTS = [f"{a} {b}" for a in "abcd" for b in "efgh"]
FIT = "fit(ppo(), rollouts({}))"

TRIES: list[tuple[str, str]] = [
    # ------------------------------------------------ rewards
    ("fit(ppo(reward=lambda prompts, responses: [0.0] * len(prompts)))", WORKS),
    ("fit(ppo(reward=lambda responses, **kw: [0.0] * len(responses)))", WORKS),
    ("fit(ppo(reward=lambda a, b: torch.zeros(len(a))))", WORKS),
    ("fit(ppo(reward=lambda a, b: np.zeros(len(a))))", WORKS),
    ("fit(ppo(reward=lambda a, b: tuple([1] * len(a))))", WORKS),
    ("LengthReward()", "reward"),
    ("ppo(reward=lambda: 0.0)", "must take `(prompts, responses)`"),
    ("ppo(reward=lambda a: 0.0)", "must take `(prompts, responses)`"),
    ("ppo(reward=lambda a, b, c, d: 0.0)", "must take `(prompts, responses)`"),
    ("fit(ppo(reward=lambda responses, answer: [0.0] * len(responses)))", "answer"),
    ("fit(ppo(reward=lambda a, b: 0.0))", "must give"),
    ("fit(ppo(reward=lambda a, b: None))", "must give"),
    ("fit(ppo(reward=lambda a, b: [0.0]))", "8"),
    ("fit(ppo(reward=lambda a, b: ['good'] * len(a)))", "'good'"),
    ("fit(ppo(reward=lambda a, b: [None] * len(a)))", "None"),
    ("fit(ppo(reward=lambda a, b: [[0.0]] * len(a)))", "is no number"),
    ("fit(ppo(reward=lambda a, b: torch.zeros(len(a), 2)))", "is no number"),
    ("fit(ppo(reward=lambda a, b: [float('nan')] * len(a)))", "nan"),
    ("fit(ppo(reward=lambda a, b: (0.0 for _ in a)))", "not generator"),
    ("fit(ppo(reward=lambda a, b: {'score': [0.0] * len(a)}))", "scores"),
    ("fit(ppo(reward=lambda a, b: {'scores': [0.0] * len(a), 'token_scores': [[0.0]] * len(a)}))", "1 token score"),
    ("fit(ppo(reward=lambda a, b: [len(r.text) for r in b]))", "AttributeError"),
    ("async def later(a, b): return [0.0] * len(a)\nppo(reward=later)", "async"),
    ("ppo(reward='length')", "must be a function or a Reward"),
    ("ppo(reward=LengthReward)", "must be a function or a Reward"),
    ("ppo(reward=ModelReward)", "must be a function or a Reward"),
    ("ppo(reward=(model, tokenizer))", "ModelReward"),
    ("ppo(reward=[reward, reward])", "MixtureReward"),
    ("ppo(eval_rewards=[reward])", "eval_rewards"),
    ("ppo(eval_rewards={'x': 3})", "must be a function or a Reward"),
    ("MixtureReward([])", "at least one"),
    ("MixtureReward([reward, reward], weights=[1.0])", "weights"),
    ("MixtureReward({'a': reward})", "rewards"),
    ("PythonReward('rules')", "package.module:function"),
    ("PythonReward(reward, timeout=-1)", "timeout"),
    ("PythonReward(reward, timeout='10')", "timeout"),
    ("fit(ppo(reward=ModelReward('nowhere')))", "nowhere"),
    ("fit(ppo(reward=ModelReward(policy)))", "reward model"),
    ("HTTPReward('localhost:8000')", "url"),
    # ------------------------------------------------ prompts
    (FIT.format("train=PROMPTS"), WORKS),
    (FIT.format("train=[{'prompt': p, 'answer': 1} for p in PROMPTS]"), WORKS),
    (FIT.format("train=datasets.Dataset.from_dict({'prompt': PROMPTS})"), WORKS),
    (FIT.format("train=datasets.Dataset.from_dict({'question': PROMPTS}), columns={'prompt': 'question'}"), WORKS),
    (FIT.format("train=datasets.DatasetDict({'train': datasets.Dataset.from_dict({'prompt': PROMPTS})})"), "split"),
    (FIT.format("train=[{'question': p} for p in PROMPTS]"), "format not recognized"),
    (FIT.format("train=[{'prompt': p} for p in PROMPTS], columns={'promt': 'prompt'}"), "The other way round"),
    (FIT.format("train=[{'prompt': p} for p in PROMPTS], columns={'prompt': 'question'}"), "question"),
    (FIT.format("train=[{'prompt': p} for p in PROMPTS], columns='question'"), "columns"),
    (FIT.format("train=[{'Prompt': p} for p in PROMPTS]"), "Prompt"),
    (FIT.format("train=[]"), "No data"),
    (FIT.format("train=''"), "Not a data path"),
    (FIT.format("train=['']*16"), "Not a data path"),
    (FIT.format("train=[{'prompt': ''} for p in PROMPTS]"), "empty"),
    (FIT.format("train=[{'prompt': None} for p in PROMPTS]"), "prompt"),
    (FIT.format("train=[{'prompt': 3} for p in PROMPTS]"), "prompt"),
    (FIT.format("train=None"), "train"),
    (FIT.format("train=range(16)"), "format not recognized"),
    (FIT.format("train=[None] * 16"), "format not recognized"),
    (FIT.format("train=lambda: PROMPTS"), "function"),
    (FIT.format("train=torch.utils.data.DataLoader(PROMPTS, batch_size=4)"), "DataLoader"),
    (FIT.format("train={'prompt': PROMPTS}"), "dict"),
    (FIT.format("train=PROMPTS[:4]"), "`train` holds 4"),
    (FIT.format("train=[p * 40 for p in PROMPTS]"), "too long"),
    (FIT.format("train=[[{'role': 'assistant', 'content': p}] for p in PROMPTS]"), "assistant"),
    (FIT.format("train=[[{'role': 'user', 'text': p}] for p in PROMPTS]"), "content"),
    (FIT.format("train=PROMPTS, val=['nowhere.jsonl']"), "nowhere.jsonl"),
    (FIT.format("train=PROMPTS, format='list'"), "`format`"),
    (FIT.format("train=PROMPTS, template='chatml'"), "`template`"),
    (FIT.format("train=PROMPTS, on_bad_row='ignore'"), "on_bad_row"),
    ("RolloutDataModule(train=PROMPTS, minibatch_size=3)", "minibatch_size"),
    ("RolloutDataModule(train=PROMPTS, minibatch_size=0)", "minibatch_size"),
    ("RolloutDataModule(train=PROMPTS, minibatch_size='4')", "minibatch_size"),
    ("RolloutDataModule(train=PROMPTS, rollout_batch_size=8.0)", "rollout_batch_size"),
    ("RolloutDataModule(train=PROMPTS, batch_size=8)", "batch_size"),
    ("RolloutDataModule(PROMPTS)", "Is it `train=...`?"),
    ("RolloutDataModule(tokenizer, train=PROMPTS)", "tokenizer"),
    ("RolloutDataModule(train=PROMPTS, ptx={'files': []})", "ptx.files"),
    ("RolloutDataModule(train=PROMPTS, ptx={'file': 'x'})", "no option `file`. Did you mean `files`"),
    ("RolloutDataModule(train=PROMPTS, eval_limit='4')", "eval_limit"),
    # ------------------------------------------------ models and groups
    ("fit(ppo(policy=(model, tokenizer)))", WORKS),
    ("ppo(policy=model)", "pair"),
    ("ppo(policy=(tokenizer, model))", "pair"),
    ("ppo(policy=(model,))", "pair"),
    ("ppo(policy=tokenizer)", "pair"),
    ("ppo(policy=None)", "policy"),
    ("fit(ppo(policy='nowhere/at-all'))", "nowhere/at-all"),
    ("fit(ppo(policy='./nowhere'))", "nowhere"),
    ("fit(ppo(policy=PROMPTS_FILE))", "prompts.jsonl"),
    ("fit(ppo(policy=EMPTY))", "empty"),
    ("fit(ppo(policy=WITHOUT_TOKENIZER))", "tokenizer"),
    ("fit(ppo(policy=REWARD))", "a model that scores"),
    ("fit(ppo(policy=BERT))", "bert"),
    ("fit(ppo(reference=BERT))", "BertLMHeadModel"),
    ("fit(ppo(reference=OTHER))", "vocabular"),
    ("fit(ppo(critic={'init': 'reward'}))", "reward"),
    ("ppo(critic='policy')", "must be CriticConfig"),
    ("ppo(critic=None)", "critic"),
    ("ppo(sampling={'temprature': 1.0})", "Did you mean `temperature`"),
    ("ppo(sampling={'temperature': 0.0})", WORKS),
    ("ppo(sampling={'temperature': '1'})", "temperature"),
    ("ppo(sampling={'max_response_length': 6.5})", "max_response_length"),
    ("ppo(sampling=0.8)", "must be SamplingConfig"),
    ("fit(ppo(sampling={'max_response_length': 10_000}))", "max_response_length"),
    ("ppo(optimizer={'learning_rate': 1e-5})", "no option `learning_rate`"),
    ("ppo(optimizer=torch.optim.AdamW)", "must be PPOOptimizerConfig"),
    ("ppo(optimizer={'lr': -1.0})", "`lr` (-1.0)"),
    ("ppo(optimizer={'betas': 0.9})", "betas"),
    ("ppo(optimizer={'lr': None})", "lr"),
    ("ppo(loss={'vf_coeff': 0.5})", "Did you mean `vf_coef`"),
    ("ppo(kl_controller=0.1)", "kl_controller"),
    ("ppo(kl_controller={'coef': 0.1})", "kl_controller"),
    ("ppo(kl_coef=0.1)", "kl_coef"),
    ("ppo(estimator='gae')", "estimator"),
    ("ppo(estimator=GAE)", "estimator"),
    ("ppo(policy_loss=0.2)", "policy_loss"),
    ("ppo(engine='vllm')", "engine"),
    ("ppo(model={'adapter': {'rank': 8}})", "no option `rank`"),
    ("fit(ppo(model={'attn_implementation': 'flash'}))", "`attn_implementation` (flash)"),
    ("ppo(on_non_finite='ignore')", "on_non_finite"),
    ("PPOModule(policy)", "reward"),
    ("PPOModule()", "policy"),
    # ------------------------------------------------ trainers, twice, checkpoints
    ("data = rollouts()\nfit(ppo(), data)\nfit(ppo(), data)", WORKS),
    ("m = ppo()\nfit(m)\nfit(m)\nm.export('again')\nm.export('again')", WORKS),
    ("fit(ppo(), rollouts(), fast_dev_run=True)", WORKS),
    ("fit(ppo(), rollouts(), callbacks=[KLMonitor(), CollapseDetector()])", WORKS),
    ("fit(ppo(), rollouts(), accumulate_grad_batches=2)", "minibatch_size"),
    ("fit(ppo(), rollouts(), gradient_clip_val=1.0)", "max_grad_norm"),
    ("fit(ppo(), rollouts(), precision='64-true')", "64-true"),
    ("fit(ppo(), rollouts(), overfit_batches=1)", "overfit_batches"),
    ("fit(ppo(), PROMPTS)", "data module"),
    ("fit(ppo(), torch.utils.data.DataLoader(PROMPTS))", "data module"),
    ("fit(SFTModule(policy), rollouts())", "RolloutDataModule"),
    ("fit(ppo(), SFTDataModule(train=['a b', 'c d'], max_length=16, batch_size=2))", "PPOModule works on"),
    ("fit(SFTModule(policy), SFTDataModule(train=['a b', 'c d'], max_length=16, batch_size=2))", WORKS),
    ("fit(RewardModelModule(policy), SFTDataModule(train=['a b', 'c d'], max_length=16, batch_size=2))", "RewardModel"),
    ("SFTDataModule()", "No data"),
    ("fit(SFTModule(policy), SFTDataModule(train=[{'promt': 'a', 'completion': 'b'}], batch_size=1))", "promt"),
    ("fit(RewardModelModule(policy), PreferenceDataModule(train=[{'prompt': 'a', 'chosen': 'b', 'rejected': 'b'}] * 4,"
     " max_length=16, batch_size=2))", "equal"),
    ("ppo().export('out')", "has loaded no model yet"),
    ("m = ppo()\nfit(m)\nm.export(PROMPTS_FILE)", "prompts.jsonl"),
    ("make_trainer('t').validate(ppo(), rollouts())", "names no data to validate on"),
    ("make_trainer('t').test(RewardModelModule(policy), PreferenceDataModule(test=PAIRS, max_length=16))", "untrained"),
    ("fit(ppo(), ckpt_path='nowhere.ckpt')", "nowhere.ckpt"),
    ("fit(ppo(), ckpt_path=PROMPTS_FILE)", "is no checkpoint"),
    ("PPOModule.load_from_checkpoint(CHECKPOINT)", "also needs `policy`, `reward`"),
    ("PPOModule.load_from_checkpoint(CHECKPOINT, policy=policy, reward=reward)", WORKS),
    ("PPOModule.load_from_checkpoint(PROMPTS_FILE, policy=policy, reward=reward)", "is no checkpoint"),
    ("SFTModule.load_from_checkpoint(CHECKPOINT, policy=policy)", "does not fit this SFTModule"),
    ("PPOModule.load_from_checkpoint(CHECKPOINT, policy=OTHER, reward=reward)", "of another size are"),
    ("fit(ppo(estimator=LeaveOneOut(2)), ckpt_path=CHECKPOINT)", "does not fit this PPOModule"),
    ("PPOModule.from_pretrained(policy)", "from_pretrained"),
    ("lit_rlhf.PPOTrainer", "PPOTrainer"),
    ("CollapseDetector(action='warning')", "action"),
    ("fit(ppo(), callbacks=[BestPolicy()], enable_checkpointing=True)", "there was no validation: it kept none"),
    ("fit(ppo(), callbacks=[CriticWarmup(steps='3')])", "steps"),
]  # fmt: skip


class _Tries:
    """What the tries are made of: see :func:`names`."""

    def __init__(self, folder: Path, world: Path) -> None:
        self.folder, self.policy = folder, str(world / "policy")

    def ppo(self, **options: Any) -> Any:
        """A module that works."""
        sizes = {"sampling": {"max_response_length": 6}}
        return lit_rlhf.PPOModule(**{"policy": self.policy, "reward": reward, **sizes, **options})

    def rollouts(self, **options: Any) -> Any:
        """A data module that works."""
        return lit_rlhf.RolloutDataModule(
            **{"train": PROMPTS, "rollout_batch_size": 8, "minibatch_size": 4, "max_prompt_length": 32, **options}
        )

    def fit(self, module: Any, data: Any = None, *, ckpt_path: Any = None, **options: Any) -> Any:
        """One iteration."""
        trainer = make_trainer(self.folder / "run", **{"max_epochs": 1, **options})
        trainer.fit(module, self.rollouts() if data is None else data, ckpt_path=ckpt_path)
        return trainer


def reward(prompts: list[str], responses: list[str]) -> list[float]:
    """A score that works."""
    return [float(len(response)) for response in responses]


def names(folder: Path, world: Path) -> dict[str, Any]:
    """The names that a try may use."""
    import datasets
    import numpy as np
    from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertForMaskedLM

    tries = _Tries(folder, world)
    tokenizer = AutoTokenizer.from_pretrained(world / "policy")
    model = AutoModelForCausalLM.from_pretrained(world / "policy")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **small)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    model.save_pretrained(folder / "bare")
    other = AutoModelForCausalLM.from_pretrained(world / "policy")
    other.resize_token_embeddings(len(tokenizer) + 64)
    other.save_pretrained(folder / "other")
    more = AutoTokenizer.from_pretrained(world / "policy")
    more.add_tokens([f"word{i}" for i in range(64)])
    more.save_pretrained(folder / "other")
    (folder / "empty").mkdir()
    tries.fit(tries.ppo()).save_checkpoint(folder / "x.ckpt")
    pairs = [{"prompt": "ab", "chosen": c, "rejected": "h"} for c in "abcd"]
    return {
        **{name: getattr(lit_rlhf, name) for name in lit_rlhf._EXPORTS},
        **{"np": np, "torch": torch, "datasets": datasets, "json": json, "L": L, "lit_rlhf": lit_rlhf},
        **{"ppo": tries.ppo, "rollouts": tries.rollouts, "fit": tries.fit, "make_trainer": make_trainer},
        **{"policy": tries.policy, "model": model, "tokenizer": tokenizer, "reward": reward, "PROMPTS": PROMPTS},
        **{"PAIRS": pairs, "PROMPTS_FILE": str(world / "prompts.jsonl"), "REWARD": str(world / "reward")},
        **{"EMPTY": str(folder / "empty"), "WITHOUT_TOKENIZER": str(folder / "bare"), "BERT": str(folder / "bert")},
        **{"OTHER": str(folder / "other"), "CHECKPOINT": str(folder / "x.ckpt")},
    }


def attempt(source: str, told: str, known: dict[str, Any]) -> tuple[str, str]:
    """How a try ends, and its message."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            exec(source, {"__name__": "tries", **known})
        except Exception as error:
            return _refused(error, told)
    own = [str(warning.message) for warning in heard if Path(warning.filename).is_relative_to(PACKAGE)]
    if told and any(told in message for message in own):
        return "one line", next(message for message in own if told in message)
    return ("silent" if told else "works"), ""


def _refused(error: Exception, told: str) -> tuple[str, str]:
    message = message_for_user(error)
    of_a_call = isinstance(error, TypeError) and "argument" in str(error) and "__init__" in str(error)
    if message is None and (of_a_call or "has no attribute" in str(error)) and told in str(error):
        message = str(error)  # Python's own word for a call that cannot be
    if message is None:
        return "traceback", f"{type(error).__name__}: {error}"
    short = len(message) < 700 and len(message.strip().splitlines()) == 1
    return ("one line" if told and told in message and short else "misleading"), message
