"""Generation with vLLM, colocated: an engine in each rank's own process that takes the policy's weights at every sync.

Imports vLLM when an engine starts; ``vllm_inside.py`` is what runs inside of it, and no other file knows its names. It
starts from the policy's configuration with dummy weights, so that the weights that it generates with always came
through :meth:`VLLMEngine.sync`, whose check compares its log-probabilities with the policy's. docs/engines.md says what
was measured and what is not known yet.
"""

from __future__ import annotations

import gc
import os
import tempfile
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lit_rlhf.distributed import is_distributed, run_together
from lit_rlhf.models.causal import unwrap
from lit_rlhf.models.plain_weights import plain_weights, save_plain_config
from lit_rlhf.models.uses import EngineLimits
from lit_rlhf.rollout.engine import GenerationRequest, RolloutEngine
from lit_rlhf.rollout.exact_draws import Draw
from lit_rlhf.rollout.sync_check import MAX_GAP_16_BITS, MAX_GAP_FP32, checked_gap
from lit_rlhf.rollout.untouched import group_kept, ranks_named, untouched
from lit_rlhf.rollout.vllm_inside import draw_processor
from lit_rlhf.rollout.vllm_installed import check_installed, set_variable
from lit_rlhf.rollout.vllm_requests import as_rollout, check_request, prompt_tokens, seeded
from lit_rlhf.types import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CPU_KV_GIB, ACCELERATOR_KV_GIB = 1.0, 8.0

CPU_PREFILL_TOKENS, ACCELERATOR_PREFILL_TOKENS = 4096, 16_384
"""What vLLM takes at a time where `max_num_batched_tokens` is not given."""


class VLLMEngine(RolloutEngine):
    """Samples with a vLLM engine in this process, one a rank: single device, DDP, ZeRO-2.

    Args:
        draws: `exact`: the library's own sampler at the request's uniform numbers, inside vLLM: the responses of
            :class:`TransformersEngine` up to rounding. `seed`: vLLM's sampler, seeded by a row's first number.
        dtype: Of vLLM's weights and arithmetic; `auto` is the policy's weights', fp32 under `bf16-mixed`.
        max_length: Longest prompt plus response, tokens; None for all positions that the policy has.
        max_sequences: Rows that run at a time.
        kv_gib: Cache of keys and values, GiB. None: 1 on a CPU, 8 on an accelerator.
        sampler_logprobs: Whether rollouts carry log-probabilities of the drawn tokens (raw logits, fp32).
        sleep: Whether vLLM gives weights and cache back between rollouts; an accelerator's memory alone.
        max_gap: Largest mean distance of vLLM's log-probabilities from the policy's after a sync, nats per token.
            None: 0.01 in fp32, 0.1 in 16 bits.
        options: Further arguments of `vllm.LLM`, over those set here.

    Raises:
        ValueError: If an option is not one of its values or not positive.
    """

    def __init__(
        self,
        *,
        draws: Literal["exact", "seed"] = "exact",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        max_length: int | None = None,
        max_sequences: int = 256,
        kv_gib: float | None = None,
        sampler_logprobs: bool = True,
        sleep: bool = True,
        max_gap: float | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        if draws not in ("exact", "seed"):
            raise ValueError(f"`draws` ({draws}) must be `exact` or `seed`.")
        for name, value in (
            ("max_length", max_length),
            ("max_sequences", max_sequences),
            ("kv_gib", kv_gib),
            ("max_gap", max_gap),
        ):
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` ({value}) must be positive.")
        self.draws, self.dtype, self.max_length, self.max_sequences = draws, dtype, max_length, max_sequences
        self.kv_gib, self.gives_logprobs, self.sleep, self.max_gap = kv_gib, sampler_logprobs, sleep, max_gap
        self.options = dict(options or {})
        self.gap = float("nan")
        self._llm: Any = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._longest = 0
        self._synced = self._sleeps = self._asleep = False

    def setup(self, *, tokenizer: Any, device: torch.device) -> None:
        """Find vLLM.

        Raises:
            ValueError: If it is not installed.
        """
        del tokenizer, device
        check_installed()

    # ------------------------------------------------------------------ weights

    def sync(self, policy: PreTrainedModel) -> None:
        """Copy the policy's weights into vLLM, starting it first, and check that they arrived; see the base class.

        Raises:
            RuntimeError: If vLLM's log-probabilities are further than ``max_gap`` from the policy's afterwards.
        """
        check_installed()
        self._synced = False
        # Built in inference mode, its tensors could not be written to at the next sync.
        with torch.inference_mode(mode=False), torch.no_grad(), untouched(policy.device):
            if self._llm is None:
                self._llm = self._start(policy)
            elif self._asleep:
                self._llm.wake_up(tags=["weights"])
            self._send(policy)
            if self._asleep:
                self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
            if not self._llm.reset_prefix_cache():
                raise RuntimeError("vLLM kept keys and values of the old weights: requests were still running.")
            run_together(lambda: self._check_weights(policy))
        self._synced = True

    def _send(self, policy: PreTrainedModel) -> None:
        # vLLM packs a tied head by itself and keeps the old one, without a word, where no `lm_head` is sent; models
        # that have none refuse it.
        has_head = self._llm.apply_model(lambda model: hasattr(model, "lm_head"))[0]
        weights = ((n, w) for n, w in plain_weights(policy) if has_head or not n.startswith("lm_head."))
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})

    def _check_weights(self, policy: PreTrainedModel) -> None:
        exact = policy.dtype == torch.float32 and self._engine_dtype(policy) == "float32"
        limit = self.max_gap or (MAX_GAP_FP32 if exact else MAX_GAP_16_BITS)
        self.gap = checked_gap(policy, partial(_prompt_logprobs, self._llm), limit=limit, longest=self._longest)

    def rest(self) -> None:
        """Gives memory back, on an accelerator, and refuses to generate until the next sync."""
        if self._llm is not None and self._sleeps and not self._asleep:
            self._llm.sleep(level=2)  # weights are not kept: the next sync brings them
            self._asleep = True
        self._synced = False

    # ------------------------------------------------------------------ responses

    @torch.no_grad()
    def generate(self, request: GenerationRequest) -> Rollout:
        """See `RolloutEngine.generate`.

        Raises:
            RuntimeError: If there was no :meth:`sync`.
            ValueError: If the sampling means something else to vLLM's sampler, or a row may not fit ``max_length``.
            FloatingPointError: If log-probabilities of a row are not finite.
        """
        if not self._synced:
            raise RuntimeError("`VLLMEngine.generate` needs the policy's weights: call `sync(policy)` first.")
        check_request(request, draws=self.draws, longest=self._longest)
        from vllm.inputs import TokensPrompt

        tokens = [TokensPrompt(prompt_token_ids=ids) for ids in prompt_tokens(request)]
        params = [self._params(row, request) for row in request.uniforms.cpu()]
        with untouched(request.prompts.prompt_ids.device):
            outputs = self._llm.generate(tokens, params, use_tqdm=False)
        found = [output.outputs[0] for output in outputs]
        logprobs = [_drawn(one.logprobs) for one in found] if self.gives_logprobs else None
        return as_rollout(request, [one.token_ids for one in found], logprobs)

    def _params(self, uniforms: Tensor, request: GenerationRequest) -> Any:
        """What vLLM is asked for one row, whose numbers are ``uniforms`` (T,)."""
        from vllm import SamplingParams

        sampling = request.sampling
        common: dict[str, Any] = {
            "max_tokens": sampling.max_response_length,
            "stop_token_ids": list(request.eos_token_ids),
            "ignore_eos": True,  # the list above is the whole truth
            "logprobs": 0 if self.gives_logprobs else None,
            "detokenize": False,
            "flat_logprobs": self.gives_logprobs,
            "skip_clone": True,
        }
        if self.draws == "exact":
            draw = Draw(uniforms, sampling, request.eos_token_ids)
            return SamplingParams(temperature=0.0, extra_args={"draw": draw}, **common)
        return SamplingParams(**seeded(sampling, uniforms[0].item()), **common)

    # ------------------------------------------------------------------ life

    def limits(self, device: torch.device | str) -> EngineLimits:
        """``kv_gib``, beside a copy of the weights; between rollouts too where vLLM does not sleep."""
        on_cpu = torch.device(device).type == "cpu"
        prefill = CPU_PREFILL_TOKENS if on_cpu else ACCELERATOR_PREFILL_TOKENS
        return EngineLimits(
            prefill_tokens=self.options.get("max_num_batched_tokens", prefill),
            cache_bytes=self._kv_bytes(on_cpu=on_cpu),
            copy_dtype=self.dtype,
            resident=on_cpu or not self.sleep,
        )

    def close(self) -> None:
        """End vLLM; a process group that was there before it stays."""
        llm, self._llm, self._synced = self._llm, None, False
        if llm is not None:
            _shut_down(llm)
            del llm
            gc.collect()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _kv_bytes(self, *, on_cpu: bool) -> int:
        gib = self.kv_gib or (CPU_KV_GIB if on_cpu else ACCELERATOR_KV_GIB)
        return int(gib * 2**30)

    def _engine_dtype(self, policy: PreTrainedModel) -> str:
        return str(policy.dtype).removeprefix("torch.") if self.dtype == "auto" else self.dtype

    def _start(self, policy: PreTrainedModel) -> Any:
        """VLLM with the policy's architecture and weights of no meaning."""
        set_variable("VLLM_ENABLE_V1_MULTIPROCESSING", "0", "the weights are handed over in this process")
        if self.draws == "exact":
            set_variable("VLLM_USE_V2_MODEL_RUNNER", "0", "`draws: exact` is a logits processor of the first runner")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings are of what is meant here
        from vllm import LLM

        refuse_shared_classes(type(unwrap(policy)).__name__)
        options = self._llm_options(policy)
        self._longest, self._sleeps = options["max_model_len"], options["enable_sleep_mode"]
        set_num_threads = torch.set_num_threads
        try:
            with ranks_named():
                return _LIVE.started(LLM, options)
        finally:
            torch.set_num_threads = set_num_threads  # on a CPU vLLM puts in its place what does nothing

    def _llm_options(self, policy: PreTrainedModel) -> dict[str, Any]:
        model, on_cpu = unwrap(policy), policy.device.type == "cpu"
        self._folder = tempfile.TemporaryDirectory(prefix="lit-rlhf-vllm-")
        save_plain_config(model, self._folder.name)
        options: dict[str, Any] = {
            "model": self._folder.name,
            "skip_tokenizer_init": True,
            "load_format": "dummy",
            "dtype": self._engine_dtype(policy),
            "max_model_len": self.max_length or model.config.get_text_config().max_position_embeddings,
            "max_num_seqs": self.max_sequences,
            "kv_cache_memory_bytes": self._kv_bytes(on_cpu=on_cpu),
            "gpu_memory_utilization": 0.01,  # what is asked to be free at the start; the cache is bounded by bytes
            "logprobs_mode": "raw_logprobs",
            "generation_config": "vllm",
            "disable_log_stats": True,
            "enable_sleep_mode": self.sleep and not on_cpu,
            "enforce_eager": on_cpu,
        }
        if self.draws == "exact":
            options["logits_processors"] = [draw_processor()]
        elif on_cpu:
            options["enable_chunked_prefill"] = False  # vLLM rewinds a generator of a kind that CPUs do not have
        if is_distributed():
            options["distributed_executor_backend"] = "external_launcher"  # one engine a rank, in the rank's process
        return options | self.options


# ---------------------------------------------------------------------- engines of the process


def refuse_shared_classes(architecture: str) -> None:
    """Refuse an architecture that vLLM has no model of.

    It would run transformers' class, after putting a ``__call__`` and ``__init__`` of its own in it, for the whole
    process: the policy could no longer be called.

    Raises:
        ValueError: There is none.
    """
    from vllm.model_executor.models.registry import ModelRegistry

    own = ModelRegistry.models.get(architecture)
    if own is None or ".transformers" in getattr(own, "module_name", ""):
        raise ValueError(
            f"`engine` (VLLMEngine): vLLM has no {architecture} of its own and would run, and change, the policy's "
            "class: use TransformersEngine."
        )


class _Live:
    """The engines of this process, which share vLLM's process groups."""

    def __init__(self) -> None:
        self.count, self.had_group = 0, False

    def started(self, make: Any, options: dict[str, Any]) -> Any:
        """An engine more; the first one says whether a default process group was there before vLLM."""
        if not self.count:
            self.had_group = torch.distributed.is_initialized()
        llm = make(**options)
        self.count += 1
        return llm


_LIVE = _Live()


def _shut_down(llm: Any) -> None:
    """End an engine. The last one takes vLLM's process groups along, and the default one if vLLM had made it."""
    import vllm.v1.engine.core as core

    _LIVE.count -= 1
    clean_up = core.cleanup_dist_env_and_memory
    try:
        if _LIVE.count:
            core.cleanup_dist_env_and_memory = lambda: None
        with untouched(torch.device("cpu")), group_kept(_LIVE.had_group):
            llm.llm_engine.engine_core.shutdown()
    finally:
        core.cleanup_dist_env_and_memory = clean_up


# ---------------------------------------------------------------------- from and to vLLM


def _drawn(flat: Any) -> list[float]:
    """The log-probability of each drawn token, of vLLM's flat columns, where it is the first of its step."""
    return [flat.logprobs[start] for start in flat.start_indices]


def _prompt_logprobs(llm: Any, ids: list[int]) -> Tensor:
    """Log-probability under vLLM of each token after the first, ``(len(ids) - 1,)``."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    (output,) = llm.generate([TokensPrompt(prompt_token_ids=ids)], params, use_tqdm=False)
    return torch.tensor([seen[i].logprob for seen, i in zip(output.prompt_logprobs[1:], ids[1:], strict=True)])
