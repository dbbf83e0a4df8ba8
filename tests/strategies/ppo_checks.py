"""The real PPO module, small, with every term of the loss: what each strategy is put through, once a launch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch

from lit_rlhf.config import AdapterConfig, ModelConfig
from lit_rlhf.datamodules.rollout import RolloutDataModule
from lit_rlhf.distributed import all_reduce_max
from lit_rlhf.evaluation.judges import ScoreJudge
from lit_rlhf.evaluation.opponent import Opponent
from lit_rlhf.modules.ppo import PPOModule
from lit_rlhf.ppo.config import LossConfig, PPOOptimizerConfig, PTXConfig
from lit_rlhf.ppo.losses import ClippedSurrogate, ClippedValueLoss
from lit_rlhf.rewards.model import ModelReward
from lit_rlhf.rollout.sampling import SamplingConfig
from tests.strategies.checks import error_of
from tests.strategies.sgd import SGDMixin
from tests.strategies.toy import SaveAt, fingerprint, trainer

ITERATIONS, STEPS = 2, 4  # an iteration is 2 minibatches x 2 passes
CLIP = 1.0
VALIDATED = 13  # prompts: ranks have different numbers of them, and of batches
OPPONENT_SCORES = (-0.5, 0.0, 0.5)
ADAPTER = AdapterConfig(r=2, alpha=8.0, target_modules="all-linear")


def make_world(folder: Path) -> Path:
    """A policy, a reward model whose scores differ, prompts and text."""
    from lit_rlhf.models.loading.causal import load_causal_lm
    from lit_rlhf.models.loading.scalar import load_scalar_model
    from lit_rlhf.models.loading.tokenizer import load_tokenizer
    from lit_rlhf.pocket.make import make

    make(folder / "pocket")
    base = folder / "pocket" / "base"
    torch.manual_seed(1)
    policy = load_causal_lm(str(base))
    # Spread the logits: from the near-uniform initialization nothing would ever be clipped.
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(torch.randn_like(p) * 0.03)
    tokenizer = load_tokenizer(str(base))
    policy.save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    reward = load_scalar_model(str(folder / "policy"), head="fresh")
    with torch.no_grad():
        reward.head.weight.normal_(0, 0.1)
    reward.save_pretrained(folder / "reward", tokenizer)
    _write_opponent(folder)
    return folder


def _write_opponent(folder: Path) -> None:
    """Saved answers to the validation prompts; their scores lie about those of the policy's own."""
    prompts = (folder / "pocket" / "prompts_val.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        {"row": i, "record": json.loads(line), "response": "yes .", "score": OPPONENT_SCORES[i % 3]}
        for i, line in enumerate(prompts)
    ]
    (folder / "opponent.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


class SGDPPO(SGDMixin, PPOModule):
    """PPO with SGD."""


class SavesInside(PPOModule):
    """Saves inside the second iteration's second update, where a loss that is not finite saves as well."""

    path = ""

    def optimize(self, losses: Any) -> Any:
        if self.global_step == STEPS + 1:
            self.trainer.save_checkpoint(self.path)
        return super().optimize(losses)


class Watch(L.Callback):
    """Every logged number of every step (the ratio drift among them) and of every validation."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.rates: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        skipped = ("time/",)
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith(skipped)}
        self.rows.append(metrics)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")})

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.callback_metrics.clear()


class SaveAtEpochEnd(L.Callback):
    """Save when the first iteration has ended, as ModelCheckpoint does by default."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


def build(
    world: Path, cls: type[PPOModule] = SGDPPO, *, val: int = 0, **overrides: Any
) -> tuple[PPOModule, RolloutDataModule]:
    options = {
        "optimizer": PPOOptimizerConfig(lr=0.3, critic_lr=0.1, max_grad_norm=CLIP),
        "loss": LossConfig(whiten_advantages=True, vf_coef=0.02, ptx_coef=0.2),
        "policy_loss": ClippedSurrogate(0.05),
        "critic_loss": ClippedValueLoss(0.1),
        "sampling": SamplingConfig(max_response_length=12, temperature=0.8, top_p=0.9),
        **overrides,
    }
    models = {"policy": str(world / "policy"), "reward": ModelReward(str(world / "reward"))}
    module = cls(**{**models, **options})
    data = RolloutDataModule(
        train=str(world / "pocket" / "prompts_train.jsonl"),
        val=str(world / "pocket" / "prompts_val.jsonl") if val else None,
        eval_limit=val or None,
        eval_batch_size=4,
        rollout_batch_size=16,
        minibatch_size=8,
        ppo_epochs=2,
        micro_batch_tokens=80,
        max_prompt_length=32,
        ptx=PTXConfig(files=[str(world / "pocket" / "pretrain.jsonl")], max_length=24, batch_ratio=0.5),
    )
    return module, data


def fit(world: Path, strategy: Any, devices: int, **options: Any) -> tuple[PPOModule, Watch]:
    build_options = {k: options.pop(k) for k in ("cls", "optimizer", "val", "opponent") if k in options}
    module, data = build(world, **build_options)
    watch = Watch()
    callbacks = [watch, *options.pop("callbacks", [])]
    ckpt_path = options.pop("ckpt_path", None)
    t = trainer(strategy, world, devices=devices, epochs=ITERATIONS, callbacks=callbacks, **options)
    t.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, watch


def equality(world: Path, strategy: str, devices: int, out: Path) -> dict[str, Any]:
    """Two iterations with SGD; weights go to ``out`` (rank 0), the numbers of steps and validations come back."""
    opponent = Opponent(answers=str(world / "opponent.jsonl"), judge=ScoreJudge("score", tie_margin=0.2))
    module, watch = fit(world, strategy, devices, val=VALIDATED, opponent=opponent, num_sanity_val_steps=0)
    if module.global_rank == 0:
        torch.save([p.detach().clone() for p in module.parameters()], out / f"{strategy}.pt")
    return {"rows": watch.rows, "rates": watch.rates, "hash": fingerprint(module)}


def judge_fails(world: Path, strategy: str, devices: int) -> str:
    """How a validation ends whose judge, which rank 0 alone asks, cannot judge."""
    opponent = Opponent(answers=str(world / "opponent.jsonl"), judge=ScoreJudge("nothing", tie_margin=0.0))
    module, data = build(world, val=VALIDATED, opponent=opponent)
    said = error_of(lambda: trainer(strategy, world, devices=devices).validate(module, data, verbose=False))
    return said.split("ValueError: ")[-1]  # the other ranks say in front of it that they end with rank 0


def first_rows(world: Path, strategy: str, devices: int, precision: str) -> list[dict[str, float]]:
    """The numbers at the first update of each iteration."""
    _, watch = fit(world, strategy, devices, precision=precision)
    return watch.rows[::STEPS]


def resume(world: Path, strategy: str, devices: int, out: Path, precision: str = "32-true") -> dict[str, str]:
    """AdamW: straight, and resumed from the end of the first iteration, the middle of the second, inside an update."""
    cls = type("SavesInside", (SavesInside,), {"path": str(out / f"i-{strategy}-{precision}.ckpt")})
    adamw = {"cls": cls, "optimizer": PPOOptimizerConfig(lr=1e-3, critic_lr=1e-3), "precision": precision}
    paths = {
        "boundary": (out / f"b-{strategy}-{precision}.ckpt", STEPS),
        "middle": (out / f"m-{strategy}-{precision}.ckpt", STEPS + 1),
    }
    saves = [SaveAt(path, step) for path, step in paths.values()]
    at_end = SaveAtEpochEnd(out / f"e-{strategy}-{precision}.ckpt")
    module, _ = fit(world, strategy, devices, callbacks=[*saves, at_end], **adamw)
    hashes = {"straight": fingerprint(module)}
    adamw["cls"] = PPOModule
    ends = {"epoch_end": at_end.path, "inside": cls.path}
    for name, path in {**{name: path for name, (path, _) in paths.items()}, **ends}.items():
        again = out / f"again-{name}-{strategy}-{precision}.ckpt"
        callbacks = [SaveAt(again, STEPS + 2)]
        resumed, _ = fit(world, strategy, devices, ckpt_path=str(path), callbacks=callbacks, **adamw)
        hashes[name] = fingerprint(resumed)
        if name not in ("middle", "inside"):  # a resumed run is itself resumed, in the middle of the iteration after
            resumed, _ = fit(world, strategy, devices, ckpt_path=str(again), **adamw)
            hashes[f"{name}, then middle"] = fingerprint(resumed)
    return hashes


def checks(world: Path, strategy: str, devices: int, out: Path) -> Iterator[dict[str, Any]]:
    yield {"equality": equality(world, strategy, devices, out)}
    yield {"first_bf16": first_rows(world, strategy, devices, "bf16-mixed")}
    yield {"resume": resume(world, strategy, devices, out)}
    yield {"judge_fails": judge_fails(world, strategy, devices)}
    yield {"adapters": adapters(world, strategy, devices, out)}


# ---------------------------------------------------------------- adapters on one base


def make_adapters(world: Path) -> Path:
    """The policy as an adapter on itself whose weights are not the fresh ones, and a reward model beside it."""
    from lit_rlhf.models.export import export_policy_adapter, export_scalar_adapter
    from lit_rlhf.models.loading.adapted import load_adapted_policy, load_adapted_scalar
    from lit_rlhf.models.loading.tokenizer import load_tokenizer

    folder, config = world / "policy", ModelConfig(adapter=ADAPTER)
    torch.manual_seed(2)
    policy = load_adapted_policy(folder, config)
    reward = load_adapted_scalar(folder, config, head="fresh")
    with torch.no_grad():
        for p in [*policy.parameters(), *reward.parameters()]:
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.03)
    tokenizer = load_tokenizer(str(folder))
    export_policy_adapter(policy, tokenizer, world / "policy_adapter")
    export_scalar_adapter(reward, tokenizer, world / "reward_adapter")
    return world


def build_adapters(
    world: Path, cls: type[PPOModule], base: Literal["nf4"] | None, **overrides: Any
) -> tuple[PPOModule, RolloutDataModule]:
    reward = ModelReward(str(world / "reward_adapter"))
    model = ModelConfig(adapter=replace(ADAPTER, base=base))
    return build(world, cls, policy=str(world / "policy_adapter"), reward=reward, model=model, **overrides)


def frozen_bits(module: PPOModule) -> str:
    """A hash of every weight that training must leave alone, as fp32."""
    digest = hashlib.sha256()
    assert module.reference is not None
    for model in (module.policy, module.critic, module.reference.model):
        for name, p in model.named_parameters():
            if not p.requires_grad:
                digest.update(name.encode() + p.detach().float().numpy().tobytes())
    return digest.hexdigest()


class SavesAdapters(L.Callback):
    """Saves in the middle of the second iteration; notes the frozen bits and the first KL on the way."""

    def __init__(self, path: Path) -> None:
        self.path, self.bits, self.kl = str(path), [], []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.bits.append(frozen_bits(pl_module))

    def on_rollout_end(self, trainer: L.Trainer, pl_module: Any, experience: Any) -> None:
        self.kl.append(float(all_reduce_max((experience.old_logprobs - experience.ref_logprobs).abs().max())))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == STEPS + 1:
            trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.bits.append(frozen_bits(pl_module))

    def found(self) -> dict[str, Any]:
        """How many different frozen bits there were, and the largest per-token KL of the first and the last rollout."""
        return {"frozen": len(set(self.bits)), "first_kl": self.kl[0], "last_kl": self.kl[-1]}


def adapters(world: Path, strategy: str, devices: int, out: Path) -> dict[str, Any]:
    """SGD in fp32 to be compared, AdamW in bf16-mixed and on a base in four bits resumed in the middle of an iteration.

    Four bits are left out where bitsandbytes is not installed.
    """
    found: dict[str, Any] = {"resume": {}}

    def run(cls: type[PPOModule], lr: float, **options: Any) -> tuple[PPOModule, Watch]:
        rates = PPOOptimizerConfig(lr=lr, critic_lr=lr, max_grad_norm=CLIP)
        watch, ckpt_path = Watch(), options.pop("ckpt_path", None)
        module, data = build_adapters(world, cls, options.pop("base", None), optimizer=rates)
        callbacks = [watch, *options.pop("callbacks", [])]
        t = trainer(strategy, world, devices=devices, epochs=ITERATIONS, callbacks=callbacks, **options)
        t.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return module, watch

    noted = SavesAdapters(out / f"adapters-{strategy}.ckpt")
    module, watch = run(SGDPPO, 1.0, callbacks=[noted])
    trained = [p.detach().clone() for p in module.parameters() if p.requires_grad]
    if module.global_rank == 0:
        torch.save(trained, out / f"adapters-{strategy}.pt")
    found["rows"] = watch.rows
    found["fp32"] = {**noted.found(), "ratios": [row["update/ratio_drift"] for row in watch.rows[::STEPS]]}
    kinds: dict[str, dict[str, Any]] = {"bf16": {"precision": "bf16-mixed"}}
    if importlib.util.find_spec("bitsandbytes"):
        kinds["nf4"] = {"base": "nf4"}
    for kind, options in kinds.items():
        noted = SavesAdapters(out / f"adapters-{kind}-{strategy}.ckpt")
        straight, watch = run(PPOModule, 1e-2, callbacks=[noted], **options)
        resumed, _ = run(PPOModule, 1e-2, ckpt_path=noted.path, **options)
        found[kind] = {**noted.found(), "ratios": [row["update/ratio_drift"] for row in watch.rows[::STEPS]]}
        path = Path(noted.path)
        files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
        found["resume"][kind] = {
            "hashes": [fingerprint(straight), fingerprint(resumed)],
            "trained": sum(p.numel() for p in straight.parameters() if p.requires_grad),
            "all": sum(p.numel() for p in straight.parameters()),
            "bytes": sum(p.stat().st_size for p in files if p.name != "zero_to_fp32.py"),
        }
    return found
