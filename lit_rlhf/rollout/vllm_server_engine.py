"""Generation by a running `vllm serve`, over HTTP: on other GPUs, tensor parallel, in an environment of its own.

Needs no vLLM where it trains. What runs on the server's side is ``vllm_inside.py``; docs/engines.md has its command.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lit_rlhf.distributed import rank, run_together
from lit_rlhf.http_service import json_headers
from lit_rlhf.models.plain_weights import plain_weights
from lit_rlhf.models.uses import EngineLimits
from lit_rlhf.rollout.engine import GenerationRequest, RolloutEngine
from lit_rlhf.rollout.exact_draws import Draw
from lit_rlhf.rollout.sampling import SamplingConfig
from lit_rlhf.rollout.sync_check import MAX_GAP_16_BITS, MAX_GAP_FP32, checked_gap
from lit_rlhf.rollout.vllm_client import VLLMClient
from lit_rlhf.rollout.vllm_requests import as_rollout, check_request, prompt_tokens, seeded
from lit_rlhf.rollout.weight_transfer import Meeting, SharedFolder, as_json, described, join, sent, write_files
from lit_rlhf.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STARTED = (
    "start it with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls lit_rlhf.rollout.vllm_inside.PolicyWeights "
    "(docs/engines.md)"
)


class VLLMServerEngine(RolloutEngine):
    """Samples by a vLLM server that takes the policy's weights at every sync. One run a server.

    Args:
        url: ``http://`` or ``https://`` address of the server, without a path.
        draws: `exact`: the library's own sampler inside the server, as in :class:`VLLMEngine`; `seed`: vLLM's, seeded
            by a row's first number.
        transfer: How weights get there. `files`: through shared memory, on the same machine. `broadcast`: in a process
            group with the server's workers, NCCL for a policy on CUDA, else Gloo.
        folder: For `files`: where they are written for the time of a sync, seen by the server under the same name.
            None: /dev/shm.
        host: For `broadcast`: this machine's address, as the server's workers see it.
        sampler_logprobs: Whether rollouts carry log-probabilities of the drawn tokens (raw logits, fp32).
        max_gap: As in :class:`VLLMEngine`.
        timeout: Seconds for one attempt, of a request or a sync.
        concurrency: Most requests at a time (of one rank).
        retries: Further attempts after the first.
        backoff: Seconds that the first wait may take at most; doubles with each attempt.
        token_env: Environment variable that holds the server's key (``--api-key``); only its name is kept.

    Raises:
        ValueError: If an option is not one of its values or out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        draws: Literal["exact", "seed"] = "exact",
        transfer: Literal["files", "broadcast"] = "files",
        folder: str | None = None,
        host: str = "127.0.0.1",
        sampler_logprobs: bool = True,
        max_gap: float | None = None,
        timeout: float = 600.0,
        concurrency: int = 256,
        retries: int = 4,
        backoff: float = 1.0,
        token_env: str | None = None,
    ) -> None:
        for name, value, choices in (
            ("draws", draws, ("exact", "seed")), ("transfer", transfer, ("files", "broadcast"))
        ):  # fmt: skip
            if value not in choices:
                raise ValueError(f"`{name}` ({value}) must be `{choices[0]}` or `{choices[1]}`.")
        if max_gap is not None and not max_gap > 0:
            raise ValueError(f"`max_gap` ({max_gap}) must be positive.")
        self.client = VLLMClient(
            url, timeout=timeout, concurrency=concurrency, retries=retries, backoff=backoff, token_env=token_env
        )
        self.draws, self.transfer, self.folder, self.host = draws, transfer, folder, host
        self.gives_logprobs, self.max_gap = sampler_logprobs, max_gap
        self.gap = float("nan")
        self._model, self._longest, self._dtype = "", 0, ""
        self._group: Any = None
        self._store: Any = None
        self._synced = self._draws_seen = False

    def setup(self, *, tokenizer: Any, device: torch.device) -> None:
        """Check that the token is there.

        Raises:
            ValueError: The environment variable is not set, or holds what a header cannot.
        """
        del tokenizer, device
        json_headers(self.client.token_env)

    # ------------------------------------------------------------------ weights

    @torch.no_grad()
    def sync(self, policy: PreTrainedModel) -> None:
        """Send the policy's weights, from the first rank, and check on each that they arrived; see the base class.

        Raises:
            RuntimeError: If the server does not answer, or its log-probabilities are further than ``max_gap`` from the
                policy's afterwards.
        """
        self._synced = False
        with torch.autocast(policy.device.type, enabled=False):
            run_together(lambda: self._send(policy) if rank() == 0 else None)
            run_together(lambda: self._check(policy))
        self._synced = True

    def _send(self, policy: PreTrainedModel) -> None:
        wanted = self._workers("policy_weights_wanted")
        dtype = getattr(torch, wanted[0]["dtype"])

        def weights() -> Iterator[tuple[str, Tensor]]:
            for name, weight in plain_weights(policy):
                # See `VLLMEngine`: a tied head must be sent, and not to models that have none.
                if wanted[0]["lm_head"] or not name.startswith("lm_head."):
                    yield name, weight.to(dtype) if weight.is_floating_point() else weight

        if self.transfer == "files":
            with SharedFolder(None if self.folder is None else Path(self.folder)) as folder:
                write_files(weights(), folder)
                self._workers("policy_weights_from", str(folder))
        else:
            self._broadcast(weights, policy.device, workers=len(wanted))
        if not self.client.post("/reset_prefix_cache", {})["success"]:
            raise RuntimeError(
                "vLLM's server kept keys and values of the old weights: requests were still running. One run a server."
            )

    def _broadcast(self, weights: Any, device: torch.device, *, workers: int) -> None:
        with ThreadPoolExecutor(1) as pool:  # the server answers when its workers have done their part
            if self._group is None:
                backend = "nccl" if device.type == "cuda" else "gloo"
                self._store = dist.TCPStore(self.host, 0, 1 + workers, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
                meeting = Meeting(self.host, self._store.port, 1 + workers, backend, self.client.timeout)
                joined = pool.submit(self._workers, "policy_weights_join", as_json(meeting), once=True)
                self._group = join(meeting, rank=0, store=self._store)
                joined.result()
            told = json.dumps(described(weights()))
            taken = pool.submit(self._workers, "policy_weights_received", told, once=True)
            sent(self._group, weights())
            taken.result()

    def _workers(self, method: str, *given: str, once: bool = False) -> list[Any]:
        """What each of the server's workers answers."""
        try:
            answer = self.client.post("/collective_rpc", {"method": method, "args": list(given)}, once=once)
        except RuntimeError as error:
            raise RuntimeError(f"{error} Does it take weights? If not, {STARTED}.") from None
        return list(answer["results"])

    def _check(self, policy: PreTrainedModel) -> None:
        (served,) = self.client.get("/v1/models")["data"][:1]
        self._model, self._longest = served["id"], served["max_model_len"]
        if self.draws == "exact" and not self._draws_seen:
            self._check_draws(policy.config.get_text_config().vocab_size)
            self._draws_seen = True
        exact = policy.dtype == torch.float32 and self._workers("policy_weights_wanted")[0]["dtype"] == "float32"
        limit = self.max_gap or (MAX_GAP_FP32 if exact else MAX_GAP_16_BITS)
        self.gap = checked_gap(policy, self._prompt_logprobs, limit=limit, longest=self._longest)

    def _check_draws(self, vocabulary: int) -> None:
        """Without the processor a server answers with its likeliest token: as good as flat, draws are at both ends."""
        flat = SamplingConfig(temperature=1e9, max_response_length=1)
        draws = [Draw(torch.tensor([u], dtype=torch.float64), flat, (0,)) for u in (0.0, 1 - 2.0**-53)]
        answers = self.client.post_all(
            "/v1/completions", [self._payload([1], 1, (0,), vllm_xargs={"draw": draw.to_json()}) for draw in draws]
        )
        found, ends = [answer["choices"][0]["token_ids"][0] for answer in answers], [0, vocabulary - 1]
        if found != ends:
            raise RuntimeError(
                f"`draws` (exact) needs a server with the library's sampler (it drew {found}, not {ends}): "
                "start it with VLLM_USE_V2_MODEL_RUNNER=0 and --logits-processors lit_rlhf.rollout.vllm_inside:Draws."
            )

    def _prompt_logprobs(self, ids: list[int]) -> Tensor:
        answer = self.client.post("/v1/completions", self._payload(ids, 1, (), prompt_logprobs=0))
        seen = answer["choices"][0]["prompt_logprobs"][1:]
        return torch.tensor([found[str(i)]["logprob"] for found, i in zip(seen, ids[1:], strict=True)])

    # ------------------------------------------------------------------ responses

    @torch.no_grad()
    def generate(self, request: GenerationRequest) -> Rollout:
        """See `RolloutEngine.generate`.

        Raises:
            RuntimeError: If there was no :meth:`sync`, or the server does not answer.
            ValueError: If the sampling means something else to vLLM's sampler, a row may not fit the server's
                ``--max-model-len``, or the server ended one by itself.
            FloatingPointError: If log-probabilities of a row are not finite.
        """
        if not self._synced:
            raise RuntimeError("`VLLMServerEngine.generate` needs the policy's weights: call `sync(policy)` first.")
        check_request(request, draws=self.draws, longest=self._longest)
        numbers = request.uniforms.cpu()
        payloads = [self._row(ids, row, request) for ids, row in zip(prompt_tokens(request), numbers, strict=True)]
        answers = self.client.post_all("/v1/completions", payloads)
        choices = [answer["choices"][0] for answer in answers]
        responses = [choice["token_ids"] for choice in choices]
        rollout = as_rollout(
            request,
            responses,
            [choice["logprobs"]["token_logprobs"] for choice in choices] if self.gives_logprobs else None,
        )
        cut = (~rollout.ended.cpu() & (rollout.response_lengths.cpu() < request.sampling.max_response_length)).nonzero()
        if len(cut):
            raise ValueError(
                f"vLLM's server ended the response after prompt {int(cut[0])} by itself: an aborted request,"
                " or stop tokens of its own (start it with --generation-config vllm)."
            )
        return rollout

    def _row(self, ids: list[int], numbers: Tensor, request: GenerationRequest) -> dict[str, Any]:
        sampling, eos = request.sampling, request.eos_token_ids
        own = (
            {"vllm_xargs": {"draw": Draw(numbers, sampling, eos).to_json()}}
            if self.draws == "exact"
            else seeded(sampling, numbers[0].item())
        )
        logprobs = {"logprobs": 0} if self.gives_logprobs else {}
        return self._payload(ids, sampling.max_response_length, eos, **logprobs, **own)

    def _payload(self, ids: list[int], tokens: int, eos: tuple[int, ...], **own: Any) -> dict[str, Any]:
        """A request in which nothing is left to the server's defaults."""
        plain = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        penalties = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0}
        return {
            "model": self._model,
            "prompt": ids,
            "max_tokens": tokens,
            "stop_token_ids": list(eos),
            "ignore_eos": True,  # the list above is the whole truth
            "return_token_ids": True,
            "add_special_tokens": False,
            **plain,
            **penalties,
            **own,
        }

    # ------------------------------------------------------------------ life

    def limits(self, device: torch.device | str) -> EngineLimits:
        """Nothing: the server's memory is its own."""
        del device
        return EngineLimits(cache_slots=1, cache_bytes=0, prefill_tokens=1)

    def rest(self) -> None:
        """Refuses to generate until the next sync."""
        self._synced = False

    def close(self) -> None:
        """Leave the group of the broadcasts; the server runs on."""
        self._group, self._store, self._synced = None, None, False
