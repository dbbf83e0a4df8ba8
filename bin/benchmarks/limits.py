"""How far the work is from what the machine can do: its useful arithmetic over the speed of products in the same run.

Useful is what any exact method has to compute, from shapes and real tokens: no padding, logits at response positions,
the last layer's keys and values everywhere but its other parts only where they are read, attention below the diagonal.
A backward pass is twice the forward. Embeddings, norms, softmaxes, draws and the optimizer count nothing, so that 1.0
is out of reach; on a GPU the share is the model FLOPs utilization (MFU), but against the measured speed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

BACKWARD = 2  # of a forward's arithmetic: a product for the input's gradient, one for the weight's
SIZE = {"cpu": 1024, "cuda": 8192}
COPIED_MIB = {"cpu": 256, "cuda": 4096}
SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama trunk of full attention, as the presets are.

    Attributes:
        hidden: Width.
        layers: Number of layers.
        intermediate: Width of the MLP.
        vocabulary: Rows of the head.
    """

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int

    @classmethod
    def of(cls, preset: Sequence[int], layers: int | None = None) -> Shape:
        """From (hidden size, layers, heads, intermediate size, vocabulary), and another number of layers."""
        hidden, usual, _, intermediate, vocabulary = preset
        return cls(hidden=hidden, layers=layers or usual, intermediate=intermediate, vocabulary=vocabulary)

    def trunk(self, *, computed: float, read: float, pairs: float, read_pairs: float) -> float:
        """Floating-point operations of one forward pass; a multiplication and an addition are two.

        Args:
            computed: Tokens whose keys and values exist afterwards.
            read: Of these, tokens whose last hidden state is read.
            pairs: Pairs of query and key.
            read_pairs: Of these, pairs whose query is read.
        """
        keys = 2 * 2 * self.hidden**2  # key and value of a token
        rest = 2 * 2 * self.hidden**2 + 2 * 3 * self.hidden * self.intermediate  # query, output, MLP
        pair = 2 * 2 * self.hidden  # a product with the key, one with the value
        whole = (keys + rest) * computed + pair * pairs
        return whole * (self.layers - 1) + keys * computed + rest * read + pair * read_pairs

    def head(self, tokens: float) -> float:
        """Floating-point operations of the logits of ``tokens`` positions."""
        return 2 * self.hidden * self.vocabulary * tokens

    @property
    def weight_count(self) -> float:
        """Weights that a decode step reads."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate) + self.hidden * self.vocabulary


def _triangle(length: float) -> float:
    """Pairs of query and key of a causal row."""
    return length * (length + 1) / 2


def _last_pairs(length: float, read: float) -> float:
    """Pairs of the last ``read`` queries of a causal row."""
    return _triangle(length) - _triangle(length - read)


def ppo_flops(
    shape: Shape, rows: Sequence[tuple[int, int]], ppo_epochs: int, *, scored_policies: int = 2
) -> dict[str, float]:
    """Useful floating-point operations of one iteration, by phase.

    Args:
        shape: Of policy, reference, critic and reward alike.
        rows: Prompt and response tokens of each row.
        ppo_epochs: Passes over the rollout.
        scored_policies: Policy and reference; 1 where the sampler gives the policy's log-probabilities.
    """
    rollout = score = update = 0.0
    for prompt, response in rows:
        fed = prompt + response - 1  # the last token is drawn, and fed to nobody
        seen = {"computed": fed, "pairs": _triangle(fed)}
        taught = shape.trunk(**seen, read=response, read_pairs=_last_pairs(fed, response))
        judged = shape.trunk(computed=fed + 1, pairs=_triangle(fed + 1), read=1, read_pairs=fed + 1)
        logits = shape.head(response)
        rollout += taught + logits
        score += scored_policies * (taught + logits) + taught + judged  # and critic, reward
        update += (1 + BACKWARD) * (2 * taught + logits)
    return {"rollout": rollout, "score": score, "update": ppo_epochs * update}


def decode_bytes(shape: Shape, rows: Sequence[tuple[int, int]], size: int) -> float:
    """Bytes that decoding reads at the least: the weights once a step, each row's keys and values once a token.

    Args:
        shape: Of the policy.
        rows: Prompt and response tokens of each row; all run at once.
        size: Bytes of a number.
    """
    steps = max(response for _, response in rows) - 1  # the prefill gives the first token
    columns = sum(_last_pairs(prompt + response - 1, response - 1) for prompt, response in rows)
    return size * (steps * shape.weight_count + columns * shape.layers * 2 * shape.hidden)


def rm_flops(shape: Shape, pairs: Sequence[tuple[int, int, int]]) -> float:
    """Useful floating-point operations of training on preference pairs, the common prefix computed once.

    Args:
        shape: Of the reward model.
        pairs: Tokens of the common prefix, and of the chosen and the rejected row beyond it.
    """
    total = 0.0
    for prefix, *rests in pairs:
        every = _triangle(prefix) + sum(_last_pairs(prefix + rest, rest) for rest in rests)
        ends = sum(prefix + rest for rest in rests)
        total += shape.trunk(computed=prefix + sum(rests), pairs=every, read=len(rests), read_pairs=ends)
    return (1 + BACKWARD) * total


# ------------------------------------------------------------------------------------------------ the machine


def machine(device: str, dtype: torch.dtype, now: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """What the machine can do with this process's threads: GFLOP/s of a large product, GB/s of a copy.

    The product is square and goes through whichever of PyTorch's libraries is faster. A copy's bytes count twice, read
    and written.

    Args:
        device: Where.
        dtype: Of the products; copies are of bytes.
        now: The clock that the work is timed by.
    """
    size = SIZE[device]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    speeds = [2 * size**3 / _seconds(partial(product, a, b), now, device) for product in _products(device, dtype)]
    source = torch.zeros(COPIED_MIB[device] * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() / _seconds(lambda: target.copy_(source), now, device)
    return {"product_gflops": round(max(speeds) / 1e9, 1), "copy_gbs": round(copied / 1e9, 1)}


def _products(device: str, dtype: torch.dtype) -> list[Callable[[Tensor, Tensor], Tensor]]:
    found: list[Callable[[Tensor, Tensor], Tensor]] = [torch.mm]
    if device == "cpu" and dtype == torch.float32 and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        found.append(lambda a, b: torch.ops.mkldnn._linear_pointwise.default(a, b, None, "none", [], ""))
    return found


def _seconds(function: Callable[[], Any], now: Callable[[], float], device: str) -> float:
    """Of one call: the best of five groups of calls that together take about ``SECONDS``."""

    def timed(calls: int) -> float:
        _wait(device)
        start = now()
        for _ in range(calls):
            function()
        _wait(device)
        return (now() - start) / calls

    function()
    calls = max(1, int(SECONDS / 5 / max(timed(1), 1e-6)))
    return min(timed(calls) for _ in range(5))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def share(flops: float, seconds: float, limit: dict[str, float]) -> float:
    """Of the product speed that the work reached."""
    return round(flops / seconds / (limit["product_gflops"] * 1e9), 3)
