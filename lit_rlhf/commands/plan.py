"""`lit-rlhf plan`: does a config fit its devices? Predicted from the config, before any weight is loaded."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lit_rlhf.models.memory import BF16, FP32, Memory, Model, Numbers, Shapes, Sharding, predict

GIB = 2**30
RESERVE_BYTES, RESERVE_SHARE = 2 * GIB, 0.05
"""Assumed, not measured: CUDA context and library workspaces, and the share an allocator loses to fragments."""
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": GIB}


def main(argv: list[str]) -> None:
    """Print the memory table of a config and whether it fits.

    Raises:
        SystemExit: 1 if it does not fit ``--memory``.
        ValueError: If the config is not one of a SFT, reward model or PPO run.
        FileNotFoundError: If a model's folder is not there and ``--model`` does not stand in for it.
    """
    args = _arguments(argv)
    config: dict[str, Any] = {}
    for path in args.config:
        config = merged(config, read_yaml(path))
    if args.strategy is not None:
        config.setdefault("trainer", {})["strategy"] = args.strategy
    if args.cpu:
        config.setdefault("trainer", {})["accelerator"] = "cpu"
    memory, numbers = plan(config, devices=args.devices, stand_in=args.model)
    needed = memory.peak if args.cpu else int(memory.peak * (1 + RESERVE_SHARE)) + RESERVE_BYTES
    limit = None if args.memory is None else parse_size(args.memory)
    if args.json:
        print(json.dumps({**as_json(memory), "needed": needed, "limit": limit}))  # noqa: T201
    else:
        print(table(memory, numbers, needed=needed, limit=limit))  # noqa: T201
    if limit is not None and needed > limit:
        raise SystemExit(1)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lit-rlhf plan", description=__doc__)
    parser.add_argument("--config", "-c", action="append", required=True, help="YAML of a run; later ones override")
    parser.add_argument("--devices", type=int, help="number of devices (default: the config's)")
    parser.add_argument("--memory", help="memory of one device, e.g. 80GB; exit code 1 if the run does not fit")
    parser.add_argument("--strategy", help="in place of the config's")
    parser.add_argument("--model", help="folder with the config.json that stands in for model folders not there yet")
    parser.add_argument(
        "--cpu", action="store_true", help="plan for a CPU: no reserve for a GPU's context and allocator"
    )
    parser.add_argument("--json", action="store_true", help="bytes by part as JSON")
    return parser.parse_args(argv)


def plan(
    config: Mapping[str, Any], *, devices: int | None = None, stand_in: str | None = None
) -> tuple[Memory, Numbers]:
    """Predicted memory of one rank of the run that ``config`` describes.

    Args:
        config: The merged YAML.
        devices: Number of ranks; default the config's.
        stand_in: Model folder (its ``config.json`` is enough) for paths that do not exist yet.

    Raises:
        ValueError: If ``model.class_path`` is none of the library's modules.
    """
    trainer, model, data = config.get("trainer", {}), config.get("model", {}), config.get("data", {})
    options, sizes = model.get("init_args", {}), data.get("init_args", {})
    numbers = replace(_numbers(trainer, devices), logits_gib=(options.get("model") or {}).get("logits_gib"))
    kind = str(model.get("class_path", "")).rsplit(".", 1)[-1]
    if kind == "PPOModule":
        models = _ppo_models(options, stand_in)
        device = "cpu" if trainer.get("accelerator") == "cpu" else "cuda"
        bytes_per_slot = models[0].cache_bytes_per_token(numbers.compute)
        shapes = _ppo_shapes(options, sizes, numbers.devices, device, bytes_per_slot)
    elif kind in ("SFTModule", "RewardModelModule"):
        models = [_trained(kind, options, stand_in)]
        shapes = _text_shapes(kind, options, sizes)
    else:
        raise ValueError(f"`model.class_path` ({kind or None}) must be PPOModule, SFTModule or RewardModelModule.")
    return predict(models, shapes, numbers), numbers


def _numbers(trainer: Mapping[str, Any], devices: int | None) -> Numbers:
    strategy = trainer.get("strategy", "auto")
    name, init = (
        (strategy, {}) if isinstance(strategy, str) else (strategy["class_path"], strategy.get("init_args", {}))
    )
    count = devices or trainer.get("devices", 1)
    count = count if isinstance(count, int) else 1
    sharding: Sharding = "ddp" if count > 1 else "single"
    if "deepspeed" in name.lower() or "zero" in name.lower():
        sharding = "zero"
    cpu = "cpu" in name.lower()
    return Numbers(
        sharding=sharding,
        devices=count * int(trainer.get("num_nodes", 1)),
        bf16="bf16" in str(trainer.get("precision", "32-true")),
        offload_optimizer="offload" in name.lower() or bool(init.get("offload_optimizer")),
        bucket=init.get("reduce_bucket_size", 5_000_000 if cpu else 200_000_000),
    )


def _ppo_models(options: Mapping[str, Any], stand_in: str | None) -> list[Model]:
    loading, frozen = options.get("model") or {}, options.get("reference") or {}
    common: dict[str, Any] = {"attention": loading.get("attn_implementation")}
    policy = _config(options["policy"], loading, stand_in)
    reference = frozen.get("path")
    reward = (options.get("reward") or {}).get("init_args") or {}
    checkpointing = bool(loading.get("gradient_checkpointing"))
    models = [
        Model(role="policy", config=policy, causal=True, trained=True, checkpointing=checkpointing, **common),
        Model(
            role="reference",
            config=_config(reference, loading, stand_in) if reference else policy,
            causal=True,
            trained=False,
            weight_bytes=_bytes(frozen.get("dtype")),
            offloaded=frozen.get("placement") == "cpu",
            **common,
        ),
    ]
    scorer = _config(reward["path"], loading, stand_in) if "path" in reward else None
    if scorer is not None:
        models.append(
            Model(
                role="reward model",
                config=scorer,
                causal=False,
                trained=False,
                weight_bytes=_bytes(reward.get("dtype")),
                offloaded=reward.get("placement") == "cpu",
                **common,
            )
        )
    estimator = str((options.get("estimator") or {}).get("class_path", "GAE")).rsplit(".", 1)[-1]
    if estimator == "GAE":
        init = (options.get("critic") or {}).get("init", "reward")
        config = scorer if init == "reward" else policy if init == "policy" else _config(init, loading, stand_in)
        critic = config if config is not None else policy
        models.append(
            Model(role="critic", config=critic, causal=False, trained=True, checkpointing=checkpointing, **common)
        )
    return models


def _trained(kind: str, options: Mapping[str, Any], stand_in: str | None) -> Model:
    loading = options.get("model") or {}
    sft = kind == "SFTModule"
    return Model(
        role="policy" if sft else "reward model",
        config=_config(options["policy" if sft else "model_path"], loading, stand_in),
        causal=sft or options.get("lm_coef", 1.0) > 0,
        trained=True,
        checkpointing=bool(loading.get("gradient_checkpointing")),
        attention=loading.get("attn_implementation"),
    )


def _ppo_shapes(
    options: Mapping[str, Any], sizes: Mapping[str, Any], devices: int, device: str, bytes_per_slot: int
) -> Shapes:
    from lit_rlhf.datamodules.rollout import RolloutDataModule
    from lit_rlhf.ppo.plan import BatchingConfig
    from lit_rlhf.rollout.sampling import SamplingConfig
    from lit_rlhf.rollout.series import cache_budget, prefill_budget

    engine = (options.get("engine") or {}).get("init_args") or {}
    prompt = _value(sizes, RolloutDataModule, "max_prompt_length")
    response = (options.get("sampling") or {}).get("max_response_length") or SamplingConfig().max_response_length
    width = prompt + response
    rows = max(1, _value(sizes, RolloutDataModule, "rollout_batch_size") // devices)
    updated = max(1, _value(sizes, RolloutDataModule, "minibatch_size") // devices)
    budget = BatchingConfig(micro_batch_tokens=sizes.get("micro_batch_tokens")).token_budget(device)
    updated = min(updated, max(1, budget // width))
    slots = cache_budget(device, bytes_per_slot=bytes_per_slot, slots=engine.get("max_batch_tokens"))
    generated = min(rows, max(1, slots // width))
    ptx = sizes.get("ptx") or {}
    return Shapes(
        update_rows=updated,
        update_width=width,
        learned=response,
        text_rows=max(1, round(updated * ptx.get("batch_ratio", 1.0))) if ptx else 0,
        text_width=ptx.get("max_length", 1024) if ptx else 0,
        generated_rows=generated,
        cache_slots=generated * width,
        prefill_tokens=min(generated * prompt, prefill_budget(device, engine.get("prefill_tokens"))),
    )


def _text_shapes(kind: str, options: Mapping[str, Any], sizes: Mapping[str, Any]) -> Shapes:
    from lit_rlhf.datamodules.preference import PreferenceDataModule
    from lit_rlhf.datamodules.sft import SFTDataModule
    from lit_rlhf.modules.sft import SFTModule

    source = SFTDataModule if kind == "SFTModule" else PreferenceDataModule
    width = _value(sizes, source, "max_length")
    rows = max(1, _value(options, SFTModule, "micro_batch_tokens") // width)
    return Shapes(update_rows=rows, update_width=width, learned=width)


def _value(given: Mapping[str, Any], owner: Any, name: str) -> int:
    value = given.get(name)
    return int(inspect.signature(owner).parameters[name].default if value is None else value)


def _bytes(dtype: str | None) -> int:
    return FP32 if dtype in (None, "float32", "32") else BF16


def _config(path: str, loading: Mapping[str, Any], stand_in: str | None) -> Any:
    from transformers import AutoConfig

    from lit_rlhf.models.checkpoint import resolve_folder

    folder = Path(path).expanduser()
    if not folder.is_dir() and stand_in is not None:
        folder = Path(stand_in)
    elif not folder.is_dir():
        try:
            folder = resolve_folder(path, weights=False)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} `--model FOLDER` names one whose config.json stands in for it."
            ) from error
    return AutoConfig.from_pretrained(folder, trust_remote_code=bool(loading.get("trust_remote_code")))


def read_yaml(path: str) -> dict[str, Any]:
    """A config file as a dict.

    Raises:
        FileNotFoundError: If it is not there.
    """
    import yaml

    if not Path(path).is_file():
        raise FileNotFoundError(f"No config file at '{path}'.")
    return dict(yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {})


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``over``, folder by folder."""
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else value
    return out


def parse_size(text: str) -> int:
    """Bytes of ``80GB``, ``40GiB``, ``512MB`` (decimal and binary units as they are written).

    Raises:
        ValueError: If it is no size.
    """
    found = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", text.strip())
    if found is None or found.group(2).upper() not in _UNITS:
        raise ValueError(f"`memory` ({text}) must be a number with a unit, for example 80GB or 40GiB.")
    return int(float(found.group(1)) * _UNITS[found.group(2).upper()])


def as_json(memory: Memory) -> dict[str, Any]:
    """The parts in bytes, and their peak."""
    return {"resident": memory.resident, "phases": memory.phases, "host": memory.host, "peak": memory.peak}


def table(memory: Memory, numbers: Numbers, *, needed: int, limit: int | None) -> str:
    """The parts in GiB, and the verdict."""
    lines = [f"One of {numbers.devices} device(s), {numbers.sharding}, {'bf16' if numbers.bf16 else 'fp32'}; GiB"]
    for title, parts in [("always", memory.resident), *((f"in {k}", v) for k, v in memory.phases.items())]:
        lines.append(f"  {title + ':':<44}{sum(parts.values()) / GIB:9.3f}")
        lines += [f"    {name:<42}{size / GIB:9.3f}" for name, size in parts.items()]
    if memory.host:
        lines.append(f"  {'in host memory, a rank:':<44}{sum(memory.host.values()) / GIB:9.3f}")
        lines += [f"    {name:<42}{size / GIB:9.3f}" for name, size in memory.host.items()]
    lines.append(f"  {'peak:':<44}{memory.peak / GIB:9.3f}")
    if needed != memory.peak:
        lines.append(f"  {'with a reserve for context and fragments:':<44}{needed / GIB:9.3f}")
    if limit is not None:
        verdict = "fits" if needed <= limit else "DOES NOT FIT"
        lines.append(f"  {verdict}: {needed / GIB:.1f} of {limit / GIB:.1f} GiB")
    return "\n".join(lines)
