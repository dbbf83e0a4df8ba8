"""`lit-rlhf plan`: does a config fit its devices? Asked of its module, before any weight is loaded."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_rlhf.commands.arguments import CommandParser

if TYPE_CHECKING:
    from lit_rlhf.models.memory import Memory, SizedModel, TrainerSetup
    from lit_rlhf.models.uses import ModelUse, PassSizes

GIB = 2**30
RESERVE_BYTES, RESERVE_SHARE = 2 * GIB, 0.05
"""Assumed, not measured: CUDA context and library workspaces, and the share an allocator loses to fragments."""
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": GIB}


def main(argv: Sequence[str]) -> None:
    """Print the memory table of a config and whether it fits.

    Raises:
        SystemExit: 1 if it does not fit ``--memory``; 2 if the config cannot be used.
        ValueError: If its module does not say how large it is.
        FileNotFoundError: If a model's folder is not there and ``--model`` does not stand in for it.
    """
    args, overrides = _arguments(argv)
    limit = None if args.memory is None else parse_size(args.memory)
    words = [word for path in args.config for word in ("--config", path)] + overrides
    words += [] if args.strategy is None else ["--trainer.strategy", args.strategy]
    words += ["--trainer.accelerator", "cpu"] if args.cpu else []
    memory, setup = plan(words, devices=args.devices, stand_in=args.model)
    needed = memory.peak if args.cpu else int(memory.peak * (1 + RESERVE_SHARE)) + RESERVE_BYTES
    if args.json:
        print(json.dumps({**as_json(memory), "needed": needed, "limit": limit}))  # noqa: T201
    else:
        print(table(memory, setup, needed=needed, limit=limit))  # noqa: T201
    if limit is not None and needed > limit:
        raise SystemExit(1)


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and those of the config that are overridden."""
    epilog = "Options of the config can be overridden as for `lit-rlhf fit`: --trainer.KEY, --model.KEY, --data.KEY."
    parser = CommandParser("plan", __doc__ or "", epilog=epilog)
    parser.add_argument("--config", "-c", action="append", required=True, help="YAML of a run; later ones override")
    parser.add_argument("--devices", type=int, help="number of devices (default: the config's)")
    parser.add_argument("--memory", help="memory of one device, e.g. 80GB; exit code 1 if the run does not fit")
    parser.add_argument("--strategy", help="in place of the config's")
    parser.add_argument("--model", help="folder with the config.json that stands in for model folders not there yet")
    parser.add_argument(
        "--cpu", action="store_true", help="plan for a CPU: no reserve for a GPU's context and allocator"
    )
    parser.add_argument("--json", action="store_true", help="bytes by part as JSON")
    args, rest = parser.parse_known_args(argv)
    names = [word for word in rest if word.startswith("--")] or rest
    if not all(name.startswith(("--trainer.", "--model.", "--data.")) for name in names):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args, rest


def plan(
    args: Sequence[str], *, devices: int | None = None, stand_in: str | None = None
) -> tuple[Memory, TrainerSetup]:
    """Predicted memory of one rank of a run.

    Args:
        args: What `lit-rlhf fit` would be given: ``--config FILE`` and overrides.
        devices: Number of ranks; default the config's.
        stand_in: Model folder (its ``config.json`` is enough) for paths that do not exist yet.

    Raises:
        SystemExit: 2 if `fit` would refuse the options.
        ValueError: If the module does not say how large it is, or belongs to another kind of data.
        FileNotFoundError: If a model is not there and nothing stands in for it.
    """
    from lit_rlhf.commands.training import build
    from lit_rlhf.models.memory import predict

    built = build(["fit", *args])
    setup = trainer_setup(built.trainer_config, devices)
    device = "cpu" if built.trainer_config.get("accelerator") == "cpu" else "cuda"
    sizes = pass_sizes(built.model, built.datamodule, ranks=setup.devices, device=device)
    return predict(sized_models(built.model.memory_models(), stand_in), sizes, setup), setup


def pass_sizes(module: Any, data: Any, *, ranks: int, device: str) -> PassSizes:
    """What the module says of the size of its passes over ``data``.

    Raises:
        ValueError: If it does not say, or belongs to another kind of data.
    """
    name = type(module).__name__
    if not hasattr(module, "memory_models"):
        raise ValueError(f"{name} does not say how large it is: derive it from BaseModule and define `memory_models`.")
    try:
        sizes: PassSizes = module.pass_sizes(data, ranks=ranks, device=device)
    except AttributeError as error:
        if error.obj is not data:
            raise
        raise ValueError(f"{name} cannot run on {type(data).__name__}, which has no `{error.name}`.") from error
    return sizes


def trainer_setup(trainer: Mapping[str, Any], devices: int | None = None) -> TrainerSetup:
    """Strategy and precision from a trainer's options; ``devices`` in place of its own."""
    from lit_rlhf.models.memory import TrainerSetup

    strategy, precision = trainer.get("strategy") or "auto", str(trainer.get("precision"))
    name, init = (
        (strategy, {}) if isinstance(strategy, str) else (strategy["class_path"], strategy.get("init_args") or {})
    )
    count = devices or _count(trainer.get("devices"))
    zero = "deepspeed" in name.lower() or "zero" in name.lower()
    return TrainerSetup(
        sharding="zero" if zero else "ddp" if count > 1 else "single",
        devices=count * int(trainer.get("num_nodes") or 1),
        bf16="bf16" in precision or (precision == "auto" and trainer.get("accelerator") != "cpu"),
        offload_optimizer="offload" in name.lower() or bool(init.get("offload_optimizer")),
        bucket=init.get("reduce_bucket_size", 5_000_000 if "cpu" in name.lower() else 200_000_000),
    )


def _count(devices: Any) -> int:
    """Devices of the trainer's option; 1 where it depends on the machine (`auto`, -1)."""
    if isinstance(devices, list):
        return len(devices)
    return max(1, int(devices)) if str(devices).lstrip("-").isdigit() else 1


def sized_models(uses: Sequence[ModelUse], stand_in: str | None = None) -> list[SizedModel]:
    """The models of a run with their configurations.

    A folder that is not there yet is taken for an adapter on the first trained model's base, where that trains one.
    """
    models = [sized(use, stand_in) for use in uses]
    first = next((model for model in models if model.adapted), None)
    if first is None:
        return models
    base, adapter = first.base or "not there yet", first.loading.adapter
    taken = [model.base or not (model.adapted or not model.trained) for model in models]
    return [
        model if known else replace(model, base=base, adapter=model.adapter or adapter)
        for model, known in zip(models, taken, strict=True)
    ]


def sized(use: ModelUse, stand_in: str | None = None) -> SizedModel:
    """The model with its configuration, read from its folder, the hub, or where that is not there from ``stand_in``.

    Raises:
        FileNotFoundError: If there is none.
    """
    from lit_rlhf.models.adapters import layers_of, stored_config
    from lit_rlhf.models.loading.origin import origin
    from lit_rlhf.models.loading.pretrained import keep_layers, load_config
    from lit_rlhf.models.memory import SizedModel

    trust = use.loading.trust_remote_code
    standing_in = stand_in is not None and not Path(use.path).expanduser().is_dir()
    try:
        found = origin(stand_in if standing_in else use.path, trust_remote_code=trust, weights=False)  # type: ignore[arg-type]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} `--model FOLDER` names one whose config.json stands in for it.") from error
    config = load_config(found.base, trust_remote_code=trust)
    layers = use.num_layers or (None if found.adapter is None else layers_of(found.adapter))
    if layers is not None:
        keep_layers(config, layers)
    stored = None if found.adapter is None or standing_in else stored_config(found.adapter)
    adapter = (use.loading.adapter and (stored or use.loading.adapter)) if use.trained else stored
    return SizedModel(
        **vars(use), config=config, base="" if standing_in else str(found.base.resolve()), adapter=adapter
    )


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
    """The parts in bytes, their peak, and a checkpoint's size."""
    return {
        "resident": memory.resident,
        "phases": memory.phases,
        "host": memory.host,
        "peak": memory.peak,
        "checkpoint": memory.checkpoint,
    }


def table(memory: Memory, setup: TrainerSetup, *, needed: int, limit: int | None) -> str:
    """The parts in GiB, and the verdict."""
    lines = [f"One of {setup.devices} device(s), {setup.sharding}, {'bf16' if setup.bf16 else 'fp32'}; GiB"]
    for title, parts in [("always", memory.resident), *((f"in {k}", v) for k, v in memory.phases.items())]:
        lines.append(f"  {title + ':':<44}{sum(parts.values()) / GIB:9.3f}")
        lines += [f"    {name:<42}{size / GIB:9.3f}" for name, size in parts.items()]
    if memory.host:
        lines.append(f"  {'in host memory, a rank:':<44}{sum(memory.host.values()) / GIB:9.3f}")
        lines += [f"    {name:<42}{size / GIB:9.3f}" for name, size in memory.host.items()]
    lines.append(f"  {'peak:':<44}{memory.peak / GIB:9.3f}")
    if needed != memory.peak:
        lines.append(f"  {'with a reserve for context and fragments:':<44}{needed / GIB:9.3f}")
    lines.append(f"  {'a checkpoint on disk:':<44}{memory.checkpoint / GIB:9.3f}")
    if limit is not None:
        verdict = "fits" if needed <= limit else "DOES NOT FIT"
        lines.append(f"  {verdict}: {needed / GIB:.1f} of {limit / GIB:.1f} GiB")
    return "\n".join(lines)
