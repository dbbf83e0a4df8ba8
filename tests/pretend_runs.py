"""Every stage with every option, on the pretend device and on the CPU: what ``tests/test_pretend_device.py`` compares.

A case is one or more Trainer runs; it gives every number that it leaves: logged metrics, weights, written rows. The
device is imported late, for its import changes the process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lit_rlhf import PreferenceDataModule, RewardModelModule, SFTDataModule, SFTModule, callbacks
from lit_rlhf.callbacks.prediction_writer import JSONLWriter
from lit_rlhf.config import ModelConfig
from lit_rlhf.models.export import export_scalar
from lit_rlhf.models.loading.scalar import load_scalar_model
from lit_rlhf.models.loading.tokenizer import load_tokenizer
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import CriticConfig, LossConfig, PPOOptimizerConfig, PTXConfig, ReferenceConfig, ShapingConfig
from lit_rlhf.ppo.estimators import GroupNormalized, LeaveOneOut
from lit_rlhf.ppo.kl_controller import AdaptiveKL, FixedKL
from lit_rlhf.ppo.losses import KLPenaltySurrogate
from lit_rlhf.rewards import LengthReward, MissingEOSReward, MixtureReward, ModelReward, PythonReward
from lit_rlhf.rewards.base import NonFiniteScoreError, Reward
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.transformers_engine import TransformersEngine
from lit_rlhf.types import RewardOutput, RewardRequest
from tests.modules.tiny_ppo import Recorder, make_data, make_ppo

MakeTrainer = Callable[..., L.Trainer]
Numbers = dict[str, float]
OPTIMIZER = PPOOptimizerConfig(lr=3e-4, critic_lr=3e-4, eps=1e-3)
"""AdamW's epsilon is what it divides rounding by where a gradient is next to nothing."""


SCALES = {"kl_sequence": 10.0, "upper_tail": 10.0}
"""What rounding adds up to: a sum over the tokens of a response, a quotient of differences of scores."""


class Run:
    """Where a case runs, and the numbers it has left so far."""

    def __init__(self, world: Path, folder: Path, make_trainer: MakeTrainer) -> None:
        self.world, self.folder, self._make_trainer = world, folder, make_trainer
        self.numbers: Numbers = {}

    def trainer(self, **options: Any) -> L.Trainer:
        return self._make_trainer(self.folder, **options)

    def keep(self, name: str, value: Any) -> None:
        """Flatten tensors, dicts, lists and texts into :attr:`numbers`."""
        if isinstance(value, Tensor):
            value = value.detach().double().cpu().flatten().tolist()
        if isinstance(value, dict):
            for key, part in value.items():
                self.keep(f"{name}.{key}", part)
        elif isinstance(value, list | tuple):
            self.numbers[f"{name}.length"] = float(len(value))
            for i, part in enumerate(value):
                self.keep(f"{name}.{i}", part)
        elif isinstance(value, str):
            self.numbers[f"{name}.text"] = float(sum((i + 1) * ord(c) for i, c in enumerate(value)))
        elif value is not None:
            self.numbers[name] = float(value)

    def fit(self, module: Any, data: Any, *, ckpt_path: str | None = None, **options: Any) -> L.Trainer:
        """Train; keep metrics of every step and the weights."""
        recorder = Recorder()
        trainer = self.trainer(**{**options, "callbacks": [recorder, *options.get("callbacks", [])]})
        trainer.fit(module, data, ckpt_path=ckpt_path)
        shown = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in recorder.metrics]
        self.keep("metrics", [{k: v for k, v in row.items() if "per_second" not in k} for row in shown])
        self.keep("weights", module.state_dict())
        return trainer

    def evaluate(self, module: Any, data: Any) -> None:
        """Validate, test and predict; keep metrics, predictions and what was written."""
        for stage in ("validate", "test"):
            trainer = self.trainer()
            self.keep(stage, dict(getattr(trainer, stage)(module, data, verbose=False)[0]))
        writer = JSONLWriter(self.folder / "predictions.jsonl")
        self.keep("predicted", self.trainer(callbacks=[writer]).predict(module, data))
        for file in sorted(self.folder.rglob("*.jsonl")):
            self.keep(file.name, [json.loads(line) for line in file.read_text().splitlines()])


# --------------------------------------------------------------------------------------------------------- PPO


class SometimesNaN(Reward):
    """A reward whose second iteration has a score that is no number."""

    name = "sometimes"

    def __init__(self) -> None:
        self.calls = 0

    def setup(self, *, device: torch.device, tokenizer: Any) -> None:
        pass

    def score(self, request: RewardRequest) -> RewardOutput:
        self.calls += 1
        if self.calls == 2:
            raise NonFiniteScoreError("not a number")
        return RewardOutput(scores=request.rollout.response_lengths.float())


def longest(prompts: list[str], responses: list[str], records: list[Any]) -> list[float]:
    """For ``PythonReward``."""
    return [float(len(text)) for text in responses]


def tiny_ppo(world: Path, kind: type[PPOModule] = PPOModule, **options: Any) -> PPOModule:
    return make_ppo(world, kind, **{"optimizer": OPTIMIZER, **options})


def data(run: Run, **options: Any) -> Any:
    prompts = str(run.world / "prompts.jsonl")
    return make_data(run.world, **{"test": prompts, "predict": prompts, **options})


def ptx(run: Run) -> PTXConfig:
    return PTXConfig(files=[str(run.world / "texts.jsonl")], max_length=16, batch_ratio=0.5)


class LoadsOnTheHost(PPOModule):
    """Refuses weights that arrive on the device: all of them at once, in fp32, may not fit there."""

    def load_models(self) -> None:
        super().load_models()
        assert self.reference is not None
        assert {p.device.type for p in [*self.parameters(), *self.reference.model.parameters()]} == {"cpu"}


def ppo_defaults(run: Run) -> None:
    module, prompts = tiny_ppo(run.world, LoadsOnTheHost), data(run)
    run.fit(module, prompts)
    run.evaluate(module, prompts)
    module.export(run.folder / "export")
    run.keep("exported", tiny_ppo(run.world, policy=str(run.folder / "export")).policy)


def ppo_sampling(run: Run) -> None:
    """Every way to draw, the sampler's own log-probabilities, the growing cache in pieces."""
    sampling = SamplingConfig(
        max_response_length=10, temperature=0.8, top_p=0.9, top_k=12, repetition_penalty=1.2, penalize_prompt=True,
        min_response_length=3,
    )  # fmt: skip
    engine = TransformersEngine(drop_every=4, prefill_tokens=32, max_batch_tokens=128, sampler_logprobs=True)
    module = tiny_ppo(
        run.world, sampling=sampling, eval_sampling=SamplingConfig(temperature=0.0, max_response_length=8),
        engine=engine, loss=LossConfig(old_logprobs="sampler", entropy_coef=0.01),
    )  # fmt: skip
    prompts = data(run, eval_samples=2)
    run.fit(module, prompts)
    run.evaluate(module, prompts)


def ppo_terms(run: Run) -> None:
    """Every term of the loss, two passes, adaptive KL, checkpointed activations."""
    module = tiny_ppo(
        run.world,
        policy_loss=KLPenaltySurrogate(0.1),
        loss=LossConfig(
            average="responses", vf_coef=0.5, ptx_coef=0.3, entropy_coef=0.02, entropy_clip=1.0,
            whiten_advantages=True, advantage_clip=2.0, target_kl=0.5,
        ),
        kl_controller=AdaptiveKL(0.1, target=0.05, horizon=32),
        shaping=ShapingConfig(normalize=False, scale=True, clip=2.0, missing_eos_penalty=0.5),
        model=ModelConfig(gradient_checkpointing=True),
        optimizer=replace(OPTIMIZER, weight_decay=0.1, max_grad_norm=0.5),
    )  # fmt: skip
    run.fit(module, data(run, ppo_epochs=2, ptx=ptx(run)))


def ppo_offload(run: Run) -> None:
    """Frozen models in host memory, fingerprints checked on the device, all rewards, the reference as old policy."""
    model = ModelReward(str(run.world / "fingerprinted"), placement="cpu", name="model")
    program = PythonReward("tests.pretend_runs:longest")
    reward = LengthReward(
        MissingEOSReward(MixtureReward([model, program], weights=[1.0, 0.1]), penalty=1.0), coef=0.01, longest=5
    )
    module = tiny_ppo(
        run.world,
        reward=reward,
        critic=CriticConfig(init=str(run.world / "fingerprinted")),
        reference=ReferenceConfig(path=str(run.world / "policy"), placement="cpu"),
        eval_rewards={"other": ModelReward(str(run.world / "reward"))},
        loss=LossConfig(old_logprobs="reference"),
    )
    prompts = data(run)
    run.fit(module, prompts)
    run.evaluate(module, prompts)


def ppo_groups(run: Run) -> None:
    """No critic, no reference, a static cache, groups kept together."""
    for estimator in (GroupNormalized(4), LeaveOneOut(2)):
        module = tiny_ppo(
            run.world,
            reward=PythonReward("tests.pretend_runs:longest"),  # exact, for a group's standard deviation divides
            estimator=estimator,
            reference=None,
            kl_controller=FixedKL(0.0),
            engine=TransformersEngine(static_cache=True, drop_every=3),
        )
        run.fit(module, data(run, keep_groups=True))


def ppo_callbacks(run: Run) -> None:
    """All callbacks, a logger, checkpoints, the sanity check."""
    names = (
        "KLMonitor",
        "PerplexityMonitor",
        "ResponseLengthMonitor",
        "RewardDistributionMonitor",
        "RepetitionMonitor",
    )
    watching = [getattr(callbacks, name)() for name in names]
    watching += [
        callbacks.SampleLogger(fixed=3, random=2, every_n_iterations=1),
        callbacks.CollapseDetector("raise_kl"),
        callbacks.CriticWarmup(iterations=1),
        callbacks.RLHFProgressBar(plain=True),
        callbacks.BestPolicy(kl_bound=100.0),
        callbacks.ExportCallback(best=True),
    ]
    module = tiny_ppo(run.world)
    run.fit(
        module, data(run), callbacks=watching, logger=CSVLogger(str(run.folder), name="csv"), enable_checkpointing=True,
        enable_progress_bar=True, num_sanity_val_steps=1, log_every_n_steps=1, max_epochs=3,
    )  # fmt: skip
    for file in ("samples.jsonl", "reward_histograms.jsonl"):
        rows = [json.loads(line) for line in (run.folder / file).read_text().splitlines()]
        run.keep(file, [{k: v for k, v in row.items() if k != "columns"} for row in rows])  # rounded to 5 digits


def ppo_skip(run: Run) -> None:
    """An iteration whose score is no number is skipped."""
    module = tiny_ppo(run.world, reward=SometimesNaN(), on_non_finite="skip", critic=CriticConfig(init="policy"))
    run.fit(module, data(run), max_epochs=3, limit_val_batches=0)
    run.keep("skipped", module.skipped_updates)


def ppo_resume(run: Run) -> None:
    """Stopped in the middle of an iteration, and resumed."""
    keep = ModelCheckpoint(dirpath=run.folder / "ckpt", every_n_train_steps=1, save_top_k=-1)
    options = {"enable_checkpointing": True, "limit_val_batches": 0}
    run.fit(tiny_ppo(run.world), data(run), callbacks=[keep], max_steps=3, max_epochs=-1, **options)
    half = str(max((run.folder / "ckpt").glob("*step=3.ckpt")))
    run.fit(tiny_ppo(run.world), data(run), ckpt_path=half, max_epochs=3, **options)


# ------------------------------------------------------------------------------------------ SFT and reward model


def rows_file(file: Path, rows: list[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def sft(run: Run) -> None:
    said = [("abc" + "d" * (i % 4), "gh" + "a" * (i % 5)) for i in range(24)]
    file = rows_file(
        run.folder.parent / "chat.jsonl",
        [{"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]} for a, b in said],
    )
    module = SFTModule(
        str(run.world / "policy"), micro_batch_tokens=64,
        sampling=SamplingConfig(max_response_length=6, temperature=0.8, top_p=0.9),
    )  # fmt: skip
    text = SFTDataModule(train=file, test=file, batch_size=8, val_fraction=0.2, max_length=32)
    run.fit(module, text)
    run.evaluate(module, text)
    module.export(run.folder / "export")


def reward_model(run: Run) -> None:
    pairs = [
        {"prompt": "abc" + "d" * (i % 4), "chosen": "gh" + "a" * (i % 5), "rejected": "b" * (1 + i % 3)}
        for i in range(24)
    ]
    file = rows_file(run.folder.parent / "pairs.jsonl", pairs)
    module = RewardModelModule(str(run.world / "policy"), head="fresh", micro_batch_tokens=64)
    preferences = PreferenceDataModule(train=file, test=file, batch_size=8, val_fraction=0.2, max_length=32)
    torch.manual_seed(0)  # the fresh head's
    run.fit(module, preferences)
    run.evaluate(module, preferences)
    module.export(run.folder / "export")
    # Its fingerprint is checked where it is loaded.
    again = RewardModelModule(str(run.folder / "export"), head="load", lm_coef=0.0, micro_batch_tokens=64)
    run.fit(again, preferences, max_epochs=1)


CASES: dict[str, Callable[[Run], None]] = {
    case.__name__: case
    for case in (
        ppo_defaults, ppo_sampling, ppo_terms, ppo_offload, ppo_groups, ppo_callbacks, ppo_skip, ppo_resume,
        sft, reward_model,
    )
}  # fmt: skip


def prepare(world: Path) -> None:
    """The world's reward model as `fit` leaves one: with a fingerprint."""
    scalar, tokenizer = load_scalar_model(world / "reward", head="load"), load_tokenizer(world / "reward")
    export_scalar(scalar, tokenizer, world / "fingerprinted")


def compare(world: Path, out: Path) -> dict[str, Any]:
    """Every case on both devices: the error on the device or None, and the largest difference with its name."""
    from tests.pretend_device import DEVICE, make_trainer

    prepare(world)
    found = {}
    for name, case in CASES.items():
        runs = {}
        try:
            for device in (torch.device("cpu"), DEVICE):
                run = Run(world, out / name / device.type, lambda root, d=device, **k: make_trainer(root, d, **k))
                torch.manual_seed(1)
                case(run)
                runs[device.type] = run.numbers
            found[name] = {"error": None, **difference(*runs.values())}
        except Exception as error:
            found[name] = {"error": f"{type(error).__name__}: {error}", "where": place(error)}
    return found


def difference(one: Numbers, other: Numbers) -> dict[str, Any]:
    """How far two runs' numbers are apart, relative to those above 1 and to :data:`SCALES`."""
    if one.keys() != other.keys():
        return {"names": sorted(one.keys() ^ other.keys())[:5], "largest": math.inf, "count": len(one)}
    apart = {}
    for name, value in one.items():
        both_nan = math.isnan(value) and math.isnan(other[name])
        scale = max(1.0, abs(value)) * next((s for part, s in SCALES.items() if part in name), 1.0)
        apart[name] = 0.0 if both_nan else abs(value - other[name]) / scale
    worst = max(apart, key=lambda name: math.inf if math.isnan(apart[name]) else apart[name])
    return {"largest": apart[worst], "worst": worst, "count": len(one)}


def place(error: BaseException) -> list[str]:
    """The library's lines of an error, innermost last."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    return [f"{f.filename.split('/lit_rlhf/')[-1]}:{f.lineno} {f.line}" for f in frames if "/lit_rlhf/" in f.filename]


# ------------------------------------------------------------------------------------------------- waiting


class Counted(PPOModule):
    """PPO that counts where the device's host waits, for each of a few methods."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waited: dict[str, list[dict[str, int]]] = {"generate": [], "score": [], "update": []}
        self.micro_batches = 0

    def counted(self, name: str, work: Callable[[], Any]) -> Any:
        from tests.pretend_device import waits

        result: list[Any] = []
        self.waited[name].append(waits(lambda: result.append(work())))
        return result[0]

    def generate(self, *args: Any) -> Any:
        return self.counted("generate", lambda: super(Counted, self).generate(*args))

    def score_rollout(self, rollout: Any, micro_batches: Any) -> Any:
        self.micro_batches = len(micro_batches)
        return self.counted("score", lambda: super(Counted, self).score_rollout(rollout, micro_batches))

    def minibatch_losses(self, *args: Any) -> Any:
        return self.counted("update", lambda: list(super(Counted, self).minibatch_losses(*args)))


def waiting(world: Path, out: Path, *, steps: int, with_ptx: bool = False, **sampling: Any) -> dict[str, Any]:
    """One iteration of ``steps`` decode steps in which no response ends: waits of its last stages, by place."""
    from tests.pretend_device import DEVICE, make_trainer

    run = Run(world, out, lambda root, **options: make_trainer(root, DEVICE, **options))
    drop_every = sampling.pop("drop_every")
    module = tiny_ppo(
        world,
        Counted,
        sampling=SamplingConfig(max_response_length=steps, min_response_length=steps, **sampling),
        engine=TransformersEngine(drop_every=drop_every),
        loss=LossConfig(entropy_coef=0.01),
    )
    prompts = data(run, ptx=ptx(run) if with_ptx else None, micro_batch_tokens=96)
    run.trainer(max_epochs=2, limit_val_batches=0).fit(module, prompts)
    last = {name: found[-1] for name, found in module.waited.items()}  # the first iteration looks at the models
    return {**last, "scored": module.micro_batches}


def refusals() -> dict[str, str]:
    """What the device says to what CUDA refuses; "" where it says nothing."""
    from tests.pretend_device import DEVICE

    ours, cpu = torch.ones(3, device=DEVICE), torch.ones(3)
    number, index = torch.tensor(2.0), torch.tensor([0, 1])
    attempts: dict[str, Callable[[], Any]] = {
        "two devices": lambda: ours + cpu,
        "two devices, matrices": lambda: torch.nn.functional.linear(ours, cpu[None]),
        "concatenation": lambda: torch.cat([ours, cpu]),
        "device index into the CPU": lambda: cpu[index.to(DEVICE)],
        "values from the CPU": lambda: ours.index_put_((index.to(DEVICE),), torch.ones(2)),
        "generator": lambda: torch.rand(2, generator=torch.Generator(), device=DEVICE),
        "permutation": lambda: torch.randperm(3, generator=torch.Generator(), device=DEVICE),
        "pinning": lambda: ours.pin_memory(),
        "numpy": lambda: ours.numpy(),
        "a number from the CPU": lambda: ours * number,
        "CPU index into the device": lambda: ours[index],
        "a copy": lambda: ours.cpu() + cpu,
    }
    said = {}
    for name, attempt in attempts.items():
        try:
            attempt()
            said[name] = ""
        except (RuntimeError, TypeError) as error:
            said[name] = str(error)
    return said


def counts() -> dict[str, int]:
    """Waits of one operation each."""
    from tests.pretend_device import DEVICE, waits

    x, mask = torch.arange(3.0, device=DEVICE), torch.tensor([True, False, True], device=DEVICE)
    attempts: dict[str, Callable[[], Any]] = {
        "arithmetic": lambda: (x * 2 + x.sum()).softmax(0),
        "item": lambda: x[0].item(),
        "float": lambda: float(x[0]),
        "bool": lambda: bool((x > 0).any()),
        "tolist": lambda: x.tolist(),
        "to the host": lambda: x.cpu(),
        "to the device": lambda: torch.ones(2).to(DEVICE),
        "made from a list": lambda: torch.tensor([1, 2], device=DEVICE),
        "to the device, not waiting": lambda: torch.ones(2).to(DEVICE, non_blocking=True),
        "nonzero": lambda: mask.nonzero(),
        "mask as index": lambda: x[mask],
        "masked fill": lambda: x.masked_fill(mask, 0.0),
        "filled by mask": lambda: x.clone().__setitem__(mask, 0.0),
        "index from the host": lambda: x[torch.tensor([0, 1])],
        "where": lambda: torch.where(mask, x, 0.0),
    }
    return {name: sum(waits(attempt).values()) for name, attempt in attempts.items()}
