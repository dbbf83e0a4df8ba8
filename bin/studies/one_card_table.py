"""Which setups of a 7B Llama fit one card: the table of docs/scaling.md, from `lit-rlhf plan`; nothing is loaded.

python bin/studies/one_card_table.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lit_rlhf.commands.plan import GIB, RESERVE_BYTES, RESERVE_SHARE, parse_size, plan

CONFIGS = Path(__file__).parents[2] / "configs" / "llama7b"
CARDS = ("80GB", "48GB", "24GB")
STAGES = ("sft", "reward", "ppo_max")
SMALL = {
    "sft": ["--model.micro_batch_tokens", "2048"],
    "reward": ["--model.micro_batch_tokens", "2048"],
    "ppo_max": ["--data.micro_batch_tokens", "2048", "--model.engine.max_batch_tokens", "8192"],
}
"""One row of 2,048 tokens a pass, and four in the key-value cache."""
ALONE = ["--trainer.devices", "1", "--trainer.strategy", "auto"]
SETUPS = {
    "all weights": ("", ALONE),
    "LoRA, bf16 base": ("_lora", []),
    "LoRA, nf4 base": ("_lora", ["--model.model.adapter.base", "nf4"]),
}


def row(stage: str, setup: str, *, small: bool, architecture: str) -> str:
    """A line of the table: always, largest phase and needed in GiB, and which card it fits."""
    suffix, words = SETUPS[setup]
    config = str(CONFIGS / f"{stage}{suffix}.yaml")
    memory, _ = plan(["--config", config, *words, *(SMALL[stage] if small else [])], stand_in=architecture)
    always = sum(memory.resident.values())
    phase = max(memory.phases, key=lambda name: sum(memory.phases[name].values()))
    needed = int(memory.peak * (1 + RESERVE_SHARE)) + RESERVE_BYTES
    cells = [
        f"`{stage}{suffix}.yaml`{', small passes' if small else ''}",
        setup,
        f"{always / GIB:.1f}",
        f"{(memory.peak - always) / GIB:.1f} ({phase})",
        f"{needed / GIB:.1f}",
        *("yes" if needed <= parse_size(card) else "no" for card in CARDS),
        f"{memory.checkpoint / GIB:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(CONFIGS / "architecture"), help="folder with the config.json of the model"
    )
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    args = parser.parse_args()
    print(f"| config | trained | always | largest phase | needed | {' | '.join(CARDS)} | checkpoint |")
    print(f"|{'---|' * (6 + len(CARDS))}")
    for stage in args.stages:
        for setup in SETUPS:
            for small in (False, True):
                print(row(stage, setup, small=small, architecture=args.model), flush=True)


if __name__ == "__main__":
    main()
