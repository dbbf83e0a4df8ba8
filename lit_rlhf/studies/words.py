"""What pages and pictures of a study call its measures."""

from __future__ import annotations

_UNITS = {
    "win": "win % over the opponents",
    "val/score": "reward model's score",
    "val/gold": "gold score",
    "val/response_length": "tokens",
    "val/kl": "nats per token",
    "val/kl_sequence": "nats per response",
    "val/perplexity": "perplexity",
}


def unit(measure: str) -> str:
    """Its unit; empty where none is known."""
    return _UNITS.get(measure, "")


def heading(measure: str) -> str:
    """What stands above a chart."""
    words = measure.removeprefix("val/").replace("_", " ").replace("rollout/", "rollouts: ")
    names = {"win": "Win rate", "gold": "Gold score", "kl": "KL to the reference", "kl sequence": "KL to the reference"}
    name = names.get(words, words[:1].upper() + words[1:])
    return f"{name} ({unit(measure)})" if unit(measure) and unit(measure) not in (words, name.lower()) else name
