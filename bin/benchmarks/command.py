"""Options of `bin/bench`, and the interleaved rounds of a comparison."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.calls import call, spread
from benchmarks.shapes import PRESETS
from benchmarks.tricks import NAMES, leave_out

MICRO_BATCH_TOKENS = 768


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="bin/bench", description="Time lit_rlhf, alone or beside another library.")
    commands = top.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--preset", choices=list(PRESETS), default="5m")
    shared.add_argument("--threads", type=int, default=1)
    shared.add_argument("--precision", choices=["fp32", "bf16-mixed"], default="fp32")
    shared.add_argument(
        "--clock", choices=["cpu", "wall"], help="default: cpu for one thread in one process, else wall"
    )
    shared.add_argument("--micro-batch-tokens", type=int, default=MICRO_BATCH_TOKENS)
    shared.add_argument("--seed", type=int, default=0)
    shared.add_argument("--peer", help="Python interpreter of the peer's environment")
    shared.add_argument("--peer-dir", type=Path, help="folder with the peer's harness")
    shared.add_argument("--rounds", type=int, default=3, help="interleaved runs of each library")
    ppo = commands.add_parser("ppo", parents=[shared], help="one PPO iteration, by phase")
    rm = commands.add_parser("rm", parents=[shared], help="reward-model training")
    scaling = commands.add_parser("scaling", parents=[shared], help="cost over response length and over batch")
    overhead = commands.add_parser("overhead", parents=[shared], help="share of Python in a PPO iteration")
    zero = commands.add_parser("zero", parents=[shared], help="two ranks against one, ZeRO-2 and DDP, one thread each")
    tricks = commands.add_parser("tricks", parents=[shared], help="what each trick gives alone: iterations without it")
    commands.add_parser("kernels", parents=[shared], help="products, attention and draws")
    memory = commands.add_parser("memory", help="peak memory that `lit-rlhf plan` predicts, and what runs take")
    memory.add_argument("--out", type=Path, default=Path("runs/memory"), help="scratch folder, emptied first")
    data = commands.add_parser("data", help="memory and time of a start on large files, without and with the cache")
    data.add_argument("--mib", type=float, default=1024, help="size of each file")
    data.add_argument("--kinds", nargs="+", choices=["prompts", "pairs"], default=["prompts", "pairs"], help="of files")
    data.add_argument("--batches", type=int, default=2000, help="batches taken after the setup")
    data.add_argument("--out", type=Path, default=Path("runs/data"), help="scratch folder")
    data.add_argument("--start", choices=["nothing", "prompts", "pairs"], help=argparse.SUPPRESS)
    for command in (ppo, rm, scaling, overhead, zero, tricks):
        command.add_argument("--data", type=Path, required=True, help="preference pairs, JSONL or JSONL.gz")
    for command in (ppo, scaling, overhead, zero, tricks):
        command.add_argument("--layers", type=int, help="default: the preset's")
        if command is not tricks:
            command.add_argument("--without", nargs="*", choices=NAMES, default=[], help="tricks to leave out")
        command.add_argument("--prompt-len", type=int, default=128)
        command.add_argument("--ppo-epochs", type=int, default=1)
        command.add_argument("--mini-batches", type=int, default=4)
        command.add_argument("--iterations", type=int, default=1 if command is scaling else 3)
        command.add_argument("--warmup", type=int, default=1)
        command.add_argument("--ranks", type=int, default=1)
        command.add_argument("--strategy", default="auto", help="of Lightning's trainer")
        command.add_argument("--sampler-logprobs", action="store_true", help="old log-probabilities from the engine")
        command.add_argument("--stub-models", action="store_true", help="models with next to no arithmetic")
    for command in (ppo, overhead, zero, tricks):
        command.add_argument("--prompts", type=int, default=64)
        command.add_argument("--prompt-dist", choices=["fixed", "hh"], default="hh")
        command.add_argument("--response-len", type=int, default=64)
        command.add_argument("--eos-rate", type=float, default=0.04, help="0: every response has the full length")
    scaling.add_argument("--lengths", nargs="+", type=int, default=[32, 64, 128, 256, 512], help="response tokens")
    scaling.add_argument("--batches", nargs="+", type=int, default=[8, 16, 32, 64], help="the first one for lengths")
    ppo.add_argument("--engine", choices=["transformers", "vllm"], default="transformers", help="vllm: --eos-rate 0")
    rm.add_argument("--batch-pairs", type=int, default=16)
    rm.add_argument("--steps", type=int, default=20)
    rm.add_argument("--warmup", type=int, default=3)
    rm.add_argument("--max-length", type=int, default=512, help="longer pairs are left out, as the peer does")
    return top


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark and print its JSON."""
    arguments = sys.argv[1:] if argv is None else argv
    options = parser().parse_args(arguments)
    if options.command == "memory":
        from benchmarks.memory import run as run_memory

        print(json.dumps(run_memory(options)))
        return
    if options.command == "data":
        from benchmarks.data import run as run_data

        print(json.dumps(run_data(options)))
        return
    if options.command == "scaling" and min(options.lengths + options.batches) < 1:
        parser().error("--lengths and --batches must be at least 1")
    if getattr(options, "layers", None) is not None and options.layers < 1:
        parser().error(f"--layers ({options.layers}) must be at least 1")
    if options.command in ("overhead", "zero", "tricks") and (
        options.ranks != 1 or options.strategy != "auto" or options.stub_models
    ):
        parser().error(f"`{options.command}` chooses --ranks, --strategy and --stub-models itself")
    alone = options.threads == 1 and options.command != "zero"  # a rank's waiting for the other one counts
    options.clock = options.clock or ("cpu" if alone else "wall")
    if (options.peer is None) != (options.peer_dir is None):
        parser().error("--peer and --peer-dir go together")
    if options.peer and options.command not in ("ppo", "rm"):
        parser().error(f"`{options.command}` has no peer")
    if options.command == "ppo" and options.engine == "vllm" and (options.eos_rate or options.stub_models):
        parser().error(
            "--engine vllm needs --eos-rate 0 and no --stub-models: vLLM has neither bias nor heads for them"
        )
    result = compare(options, arguments) if options.peer else run(options)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(json.dumps(result))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One run of this library in this process."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if options.command in ("ppo", "scaling"):  # the others start processes that do
        leave_out(options.without)
    if options.command == "ppo":
        from benchmarks.ppo import run as run_ppo

        return run_ppo(options)
    if options.command == "rm":
        from benchmarks.rm import run as run_rm

        return run_rm(options)
    if options.command == "scaling":
        from benchmarks.scaling import run as run_scaling

        return run_scaling(options)
    if options.command in ("overhead", "zero", "tricks"):
        from benchmarks import shares

        runs = {"overhead": shares.overhead, "zero": shares.zero, "tricks": shares.tricks}
        return runs[options.command](options)
    from benchmarks.kernels import run as run_kernels

    return run_kernels(options)


# ------------------------------------------------------------------------------------------------ beside a peer


def peer_arguments(options: argparse.Namespace) -> list[str]:
    """The same work in the words of the peer's harness."""
    names = {"preset", "data", "threads", "clock", "seed", "warmup"}
    if options.command == "ppo":
        names |= {"prompts", "prompt_len", "prompt_dist", "response_len", "eos_rate", "ppo_epochs", "mini_batches"}
        extra = ["--updates", str(options.iterations)]
    else:
        names |= {"batch_pairs", "steps", "max_length"}
        extra = []
    for name in sorted(names):
        extra += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return [*extra, *(["--bf16"] if options.precision == "bf16-mixed" else [])]


def without_peer(arguments: list[str]) -> list[str]:
    """The command line of one run of ours."""
    kept, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("--peer", "--peer-dir", "--rounds"):
            skip = True
        elif not argument.startswith(("--peer=", "--peer-dir=", "--rounds=")):
            kept.append(argument)
    return kept


def compare(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Interleaved rounds of both; how many times cheaper ours is, by phase, as min/median/max over the rounds."""
    bench = Path(__file__).resolve().parent.parent / "bench"
    script = options.peer_dir / f"trl_{options.command}.py"
    ours, theirs = [], []
    for _ in range(options.rounds):
        ours.append(call([sys.executable, str(bench), *without_peer(arguments)], options.threads))
        theirs.append(call([options.peer, str(script), *peer_arguments(options)], options.threads))
    pairs = [costs(options.command, a, b) for a, b in zip(ours, theirs, strict=True)]
    ratios = {key: spread([pair[key][1] / pair[key][0] for pair in pairs]) for key in pairs[0]}
    shares = peer_shares(options.command, ours, theirs)
    return {"ratios": ratios, "share_of_product_speed": shares, "ours": ours, "peer": theirs}


def peer_shares(
    command: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Share of the machine's product speed, ours and theirs, by phase, over the rounds.

    The useful arithmetic is ours, by the peer's tokens where it took others; the machine's speed is that of our run.
    """
    own: dict[str, list[float]] = {}
    peer: dict[str, list[float]] = {}
    for a, b in zip(ours, theirs, strict=True):
        cost = costs(command, a, b)
        for phase, reached in a["share_of_product_speed"].items():
            seconds = cost["pair" if command == "rm" else phase]
            tokens = 1.0
            if command == "ppo":
                responses, prompts = b["response_tokens_per_iteration"], b["prompt_tokens_per_iteration"]
                tokens = (responses + prompts) / (a["response_tokens"] + a["prompt_tokens"])
            own.setdefault(phase, []).append(reached)
            peer.setdefault(phase, []).append(reached * tokens * seconds[0] / seconds[1])
    return {phase: {"ours": spread(own[phase], digits=3), "peer": spread(peer[phase], digits=3)} for phase in own}


def costs(command: str, ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """What each run cost, (ours, theirs), by name; less is better."""
    memory = (ours["memory_peak_mib"], theirs["peak_rss_mb"])
    if command == "ppo":
        phases = {name: (ours["seconds"][name], theirs["phases_median_s"][name]) for name in ours["seconds"]}
        phases = {name: pair for name, pair in phases.items() if name != "between"}
        # The two shuffle the prompts differently, so that an iteration is not exactly the same number of tokens.
        own_tokens, peer_tokens = ours["response_tokens"], theirs["response_tokens_per_iteration"]
        per_response = (phases["rollout"][0] / own_tokens, phases["rollout"][1] / peer_tokens)
        own_tokens, peer_tokens = (
            own_tokens + ours["prompt_tokens"],
            peer_tokens + theirs["prompt_tokens_per_iteration"],
        )
        per_token = (phases["total"][0] / own_tokens, phases["total"][1] / peer_tokens)
        return {**phases, "rollout_per_token": per_response, "total_per_token": per_token, "memory": memory}
    return {
        "pair": (1 / ours["pairs_per_s"], 1 / theirs["pairs_per_s"]),
        "token": (1 / ours["tokens_per_s"], 1 / theirs["real_tokens_per_s"]),
        "memory": memory,
    }
