"""What of this library runs inside vLLM's own processes: the draws, and the policy's weights arriving at a server.

Named on the command line of `vllm serve` (docs/engines.md), and the other of the two files that know what is in vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_rlhf.rollout.exact_draws import Draw, draw_tokens
from lit_rlhf.rollout.weight_transfer import join, received


@cache
def draw_processor() -> type:
    """The class ``Draws``: vLLM's logits processor (of its first model runner) that leaves one token a row.

    That token is the one the library's own sampler draws. A request without ``draw`` among its extra arguments is left
    to vLLM's sampler.
    """
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates
    from vllm.v1.sample.logits_processor.interface import LogitsProcessor

    class Draws(LogitsProcessor):  # type: ignore[misc,unused-ignore]
        """Rows with the same sampling and EOS are drawn together."""

        def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: FBT001
            del vllm_config, device, is_pin_memory
            self.rows: dict[int, tuple[Draw, list[int], list[int]]] = {}

        def is_argmax_invariant(self) -> bool:
            """Not: what it leaves is a draw."""
            return False

        def update_state(self, batch_update: Any) -> None:
            """Note which rows came, went and moved."""

            def row(params: Any, prompt: list[int] | None, output: list[int]) -> Any:
                draw = (params.extra_args or {}).get("draw")
                return None if draw is None else (as_draw(draw), prompt or [], output)

            process_dict_updates(self.rows, batch_update, row)

        def apply(self, logits: Tensor) -> Tensor:
            """All but the drawn token of each row ``(B, V)`` at minus infinity."""
            groups: dict[Any, list[int]] = {}
            for number in sorted(row for row in self.rows if row < logits.size(0)):
                draw = self.rows[number][0]
                groups.setdefault((draw.sampling, draw.eos_token_ids), []).append(number)
            for rows in groups.values():  # of a server several requests' rows may run together
                index = torch.tensor(rows, device=logits.device)
                tokens = draw_tokens(logits[index], [self.rows[row] for row in rows])
                logits[index] = torch.full_like(logits[index], -torch.inf).scatter_(1, tokens[:, None], 0.0)
            return logits

    return Draws


def __getattr__(name: str) -> Any:
    """``vllm_inside:Draws``, as vLLM's command line names it; this file is imported without vLLM, too."""
    if name == "Draws":
        return draw_processor()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def as_draw(given: Draw | str) -> Draw:
    """A draw as the engine of this process gives it, or as it comes over HTTP."""
    return given if isinstance(given, Draw) else Draw.from_json(given)


class PolicyWeights:
    """Further methods of vLLM's worker (``--worker-extension-cls``), called through ``/collective_rpc``.

    Everything in and out is text or a dict, for that is all that vLLM passes on.
    """

    rank: int
    model_runner: Any
    policy_group: Any = None

    def policy_weights_wanted(self) -> dict[str, Any]:
        """What this worker takes: the dtype of its weights, and whether it has a head of its own."""
        model = self.model_runner.get_model()
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        return {"dtype": dtype, "lm_head": hasattr(model, "lm_head")}

    def policy_weights_from(self, folder: str) -> None:
        """Take the weights of the safetensors files in ``folder``, in the order of their names."""
        self._reload(_files(Path(folder)))

    def policy_weights_join(self, address: str) -> None:
        """Join the group that weights are broadcast in, whose first member is the trainer.

        Args:
            address: JSON of ``weight_transfer.Meeting``.
        """
        self.policy_group = join(address, rank=1 + self.rank)

    def policy_weights_received(self, described: str) -> None:
        """Take broadcast weights, ``described`` by name, dtype and shape (JSON), in this order."""
        device = next(self.model_runner.get_model().parameters()).device
        self._reload(received(self.policy_group, json.loads(described), device))

    def _reload(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        self.reload_weights(weights_iterator=weights)  # type: ignore[attr-defined]


def _files(folder: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  # not a dict
                yield name, file.get_tensor(name)
