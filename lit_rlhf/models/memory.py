"""Memory of one device, part by part, from shapes alone: no weight is loaded and nothing is allocated.

Models are built, and run forward, on fake tensors (the meta device with the bookkeeping of a real one), so parameters
and saved activations are counted for the very architecture, attention and checkpointing of a config, not by formula.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from lit_rlhf.config import AdapterConfig, BaseKind
from lit_rlhf.functional.logprobs import ACCELERATOR_BLOCK, LOGIT_COPIES
from lit_rlhf.models.adapters import new_adapter
from lit_rlhf.models.causal import unwrap
from lit_rlhf.models.loading.pretrained import enable_checkpointing, freeze_first_layers
from lit_rlhf.models.scoring import logits_chunk
from lit_rlhf.models.uses import ModelUse, PassSizes

Sharding = Literal["single", "ddp", "zero"]
FP32, BF16 = 4, 2
NF4 = 0.5 + (1 + 4 / 256) / 64
"""Bytes of a weight in four bits: blocks of 64 have a scale of 8 bits, 256 of these one of 32 (QLoRA, section 3)."""


def cache_bytes_per_token(config: Any, size: int) -> int:
    """Keys and values of one token in all layers of a model with this config, in numbers of ``size`` bytes."""
    config = config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * size)


@dataclass(frozen=True, kw_only=True)
class TrainerSetup:
    """What the trainer does with dtypes and devices.

    Attributes:
        sharding: One device, DDP, or ZeRO-2.
        devices: Number of ranks.
        bf16: Whether computation is in bf16.
        offload_optimizer: Whether master weights and optimizer state are in host memory.
        bucket: Elements of a communication bucket.
        logits_gib: ``ModelConfig.logits_gib``.
    """

    sharding: Sharding = "single"
    devices: int = 1
    bf16: bool = True
    offload_optimizer: bool = False
    bucket: int = 200_000_000
    logits_gib: float | None = None

    @property
    def compute(self) -> int:
        """Bytes of an activation."""
        return BF16 if self.bf16 else FP32

    @property
    def trained(self) -> int:
        """Bytes of a trained weight on the device: DeepSpeed keeps bf16 ones beside fp32 masters, others fp32."""
        return self.compute if self.sharding == "zero" else FP32


@dataclass(frozen=True, kw_only=True)
class SizedModel(ModelUse):
    """A model of a run with the configuration that says how large it is.

    Attributes:
        config: Transformers configuration, of as many layers as are kept.
        base: What tells its base from others: models with the same one may share weights.
        adapter: Size of the adapter that it comes with, or that is put on it; None for a whole model.
    """

    config: Any
    base: str = ""
    adapter: AdapterConfig | None = None

    def weight_bytes(self, setup: TrainerSetup) -> int:
        """Bytes of a weight on the device."""
        if self.trained or self.dtype is None:
            return setup.trained
        return FP32 if self.dtype == "float32" else BF16

    @property
    def adapted(self) -> bool:
        """Whether it trains an adapter on a frozen base."""
        return self.trained and self.loading.adapter is not None

    @property
    def offloaded(self) -> bool:
        """Whether it waits in host memory."""
        return self.placement == "cpu" and not self.trained

    @cached_property
    def parameters(self) -> int:
        """Number of parameters, an adapter's not counted."""
        return sum(p.numel() for p in self._whole.parameters())

    @cached_property
    def linear_parameters(self) -> int:
        """Of these the weights of linear layers, other than the output embedding: what four bits are for."""
        head = self._whole.get_output_embeddings() if self.causal else None
        kinds = ("Linear", "Conv1D")
        return sum(m.weight.numel() for m in self._whole.modules() if type(m).__name__ in kinds and m is not head)

    @cached_property
    def adapter_parameters(self) -> int:
        """Number of an adapter's parameters; 0 without one."""
        if self.adapter is None:
            return 0
        model = self.fake(torch.float32)[1]
        return sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)

    @cached_property
    def trained_parameters(self) -> int:
        """Number of parameters that training changes."""
        if not self.trained:
            return 0
        if self.adapter is None and not self.loading.freeze_layers:
            return self.parameters
        return sum(p.numel() for p in self.fake(torch.float32)[1].parameters() if p.requires_grad)

    @cached_property
    def _whole(self) -> Any:
        return replace(self, adapter=None).fake(torch.float32)[1]

    def fake(self, dtype: torch.dtype) -> tuple[Any, nn.Module]:
        """The fake-tensor mode and the model built in it, its adapter inside."""
        from torch._subclasses.fake_tensor import FakeTensorMode
        from transformers import AutoModel, AutoModelForCausalLM

        # Flash attention saves what torch's fused kernel saves, and is not importable where there is no GPU.
        attention = "eager" if self.loading.attn_implementation == "eager" else "sdpa"
        kind = AutoModelForCausalLM if self.causal else AutoModel
        mode = FakeTensorMode()
        with torch.device("meta"):
            model = kind.from_config(self.config, dtype=dtype, attn_implementation=attention)
            if self.adapter is not None:
                model = unwrap(new_adapter(model, self.adapter, base="")).to(dtype)  # as autocast computes
        with mode:  # not before: peft cannot put its layers among fake tensors
            _make_empty(model)
        freeze_first_layers(model, self.loading.freeze_layers)
        model.train(self.trained)
        if self.loading.gradient_checkpointing and self.trained:
            enable_checkpointing(model)
        return mode, model

    def saved_activations(self, rows: int, width: int, dtype: torch.dtype) -> int:
        """Bytes that a forward pass of ``rows`` x ``width`` tokens keeps for backward, parameters not counted."""
        mode, model = self.fake(dtype)
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage()._cdata not in own:
                kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        trunk: Any = model.base_model if self.causal else model
        with mode, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = trunk(input_ids=torch.zeros(rows, width, dtype=torch.long), use_cache=False)
        assert output is not None  # the graph must live until everything is counted
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    def cache_bytes_per_token(self, compute: int) -> int:
        """Keys and values of one token in all layers."""
        return cache_bytes_per_token(self.config, compute)

    def widest(self, compute: int) -> int:
        """Bytes needed per token inside one layer of a pass that keeps nothing."""
        config = self.config.get_text_config()
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        return int((2 * inner + 6 * config.hidden_size) * compute)


@dataclass(frozen=True)
class Memory:
    """Bytes by part: what always lives, and what lives in one phase.

    Attributes:
        resident: Parts that live all the time.
        phases: Parts of each phase.
        host: Parts in host memory, per rank.
        checkpoint: Bytes of a checkpoint on disk, all ranks together.
    """

    resident: dict[str, int] = field(default_factory=dict)
    phases: dict[str, dict[str, int]] = field(default_factory=dict)
    host: dict[str, int] = field(default_factory=dict)
    checkpoint: int = 0

    @property
    def peak(self) -> int:
        """Resident parts and the largest phase."""
        return sum(self.resident.values()) + max((sum(p.values()) for p in self.phases.values()), default=0)


def _make_empty(model: nn.Module) -> None:
    """Put uninitialized tensors on the CPU in the place of those of the meta device; tied ones stay tied."""
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                tensors[name] = made[id(tensor)]  # type: ignore[assignment]


def predict(models: list[SizedModel], sizes: PassSizes, setup: TrainerSetup) -> Memory:
    """Memory of one rank.

    Args:
        models: The run's models; the first trained causal one generates.
        sizes: Rows and tokens of one rank.
        setup: Strategy and precision.
    """
    memory = Memory(checkpoint=_checkpoint(models, setup))
    _weights(memory, models, setup)
    memory.phases["update"] = _update(models, sizes, setup)
    if sizes.generated_rows:
        policy = next(m for m in models if m.trained and m.causal)
        memory.phases["rollout"] = _rollout(policy, sizes, setup)
        if sizes.copy_dtype is not None:
            place = memory.resident if sizes.engine_resident else memory.phases["rollout"]
            place |= _engine(policy, sizes, setup)
        memory.phases["scoring"] = _scoring(models, sizes, setup)
    return memory


def _weights(memory: Memory, models: list[SizedModel], setup: TrainerSetup) -> None:
    shared = _shared_bases(models)
    for base, kind in shared.items():
        largest = max((m for m in models if _shares(m, shared) and m.base == base), key=lambda m: m.parameters)
        part = "shared base weights"
        memory.resident[part] = memory.resident.get(part, 0) + _base_bytes(largest, kind, setup)
    for model in models:
        size = model.weight_bytes(setup)
        on_base = _shares(model, shared)
        if on_base and not model.adapter_parameters:
            continue
        place = memory.host if model.offloaded and not on_base else memory.resident
        part = f"{model.role} {'adapter' if on_base else 'weights'}"
        count = model.adapter_parameters if on_base else model.parameters
        place[part] = place.get(part, 0) + count * (setup.trained if on_base else size)
    trained = sum(m.trained_parameters for m in models)
    shards = setup.devices if setup.sharding == "zero" else 1
    # AdamW's two moments in fp32; ZeRO adds its own fp32 master weights, also when the weights are fp32 already.
    state = (3 if setup.sharding == "zero" else 2) * FP32 * trained // shards
    (memory.host if setup.offload_optimizer else memory.resident)["optimizer state"] = state
    memory.resident["gradients"] = trained * setup.trained // shards
    if setup.sharding == "ddp":
        memory.resident["communication buckets"] = trained * FP32
    elif setup.sharding == "zero":
        # Two reduction buckets (one fills while one travels) and one for gathering the updated weights.
        memory.resident["communication buckets"] = 3 * min(setup.bucket, trained) * setup.trained


def _shared_bases(models: list[SizedModel]) -> dict[str, BaseKind | None]:
    """How each base is kept that an adapter is trained on."""
    return {m.base: m.loading.adapter.base for m in models if m.adapted and m.loading.adapter is not None}


def _shares(model: SizedModel, shared: dict[str, BaseKind | None]) -> bool:
    """Whether the model runs on a shared base; the rule of ``loading.adapted.shared_origin`` for frozen ones."""
    if model.trained:
        return model.adapted
    return model.placement == "device" and model.base in shared and model.dtype in (None, shared[model.base])


def _base_bytes(model: SizedModel, kind: BaseKind | None, setup: TrainerSetup) -> int:
    if kind == "nf4":
        return int(NF4 * model.linear_parameters) + setup.compute * (model.parameters - model.linear_parameters)
    # DeepSpeed casts all weights of the module, frozen ones too.
    return model.parameters * min(BF16 if kind == "bfloat16" else FP32, setup.trained)


def _checkpoint(models: list[SizedModel], setup: TrainerSetup) -> int:
    """Trained weights, AdamW's two moments, and ZeRO's fp32 masters; frozen models are in no checkpoint."""
    trained = sum(m.trained_parameters for m in models)
    return trained * (setup.trained + (3 if setup.sharding == "zero" else 2) * FP32)


def _update(models: list[SizedModel], sizes: PassSizes, setup: TrainerSetup) -> dict[str, int]:
    trained = [m for m in models if m.trained]
    dtype = torch.bfloat16 if setup.bf16 else torch.float32
    parts: dict[str, int] = {}
    for model in trained:
        count = model.saved_activations(sizes.update_rows, sizes.update_width, dtype)
        if model.loading.gradient_checkpointing:
            whole = replace(model, loading=replace(model.loading, gradient_checkpointing=False))
            one_layer = whole.saved_activations(sizes.update_rows, sizes.update_width, dtype)
            count += one_layer // model.config.get_text_config().num_hidden_layers
        if model.causal and sizes.text_rows:
            count += model.saved_activations(sizes.text_rows, sizes.text_width, dtype)
        parts[f"{model.role} activations"] = count
    parts["logits"] = max((_logits(m, sizes, setup, LOGIT_COPIES) for m in trained if m.causal), default=0)
    if setup.bf16 and setup.sharding != "zero":
        # Autocast's cache of trained weights; of frozen fp32 ones, which it does not keep, those that backward needs.
        parts["bf16 copies of weights"] = BF16 * sum(m.trained_parameters + _copied(m) for m in trained)
    return parts


def _copied(model: SizedModel) -> int:
    """Weights of a frozen fp32 base whose bf16 copies a backward pass keeps: all, or a layer's at a time."""
    if not model.adapted or model.loading.adapter is None or model.loading.adapter.base not in (None, "float32"):
        return 0
    layers = model.config.get_text_config().num_hidden_layers if model.loading.gradient_checkpointing else 1
    return model.linear_parameters // int(layers)


def _logits(model: SizedModel, sizes: PassSizes, setup: TrainerSetup, copies: int) -> int:
    """``copies`` of a chunk in the head's dtype, and the four fp32 blocks of rows that softmax and entropy work in."""
    vocabulary = model.config.get_text_config().vocab_size
    tokens = sizes.update_rows * sizes.learned + sizes.text_rows * sizes.text_width
    elements = min(tokens, logits_chunk(model, "cuda", gib=model.loading.logits_gib)) * vocabulary
    return int(copies * setup.compute * elements + 4 * FP32 * min(elements, ACCELERATOR_BLOCK))


def _rollout(policy: SizedModel, sizes: PassSizes, setup: TrainerSetup) -> dict[str, int]:
    vocabulary, per_token = policy.config.get_text_config().vocab_size, policy.cache_bytes_per_token(setup.compute)
    rows, copies = sizes.generated_rows, sizes.copy_dtype is not None
    if sizes.cache_bytes is not None and not copies:
        rows = min(rows, max(1, sizes.cache_bytes // (per_token * sizes.update_width)))
    cache = {"KV cache": sizes.cache_slots * rows // sizes.generated_rows * per_token}
    return {
        **({} if copies else cache),  # an engine with a copy of the weights has its cache counted with that
        # Logits, weights, sorted weights, their sums (fp32) and the order (int64).
        "logits": rows * vocabulary * (4 * FP32 + 8),
        "prefill": sizes.prefill_tokens * policy.widest(setup.compute),
    }


def _engine(policy: SizedModel, sizes: PassSizes, setup: TrainerSetup) -> dict[str, int]:
    """What an engine with a copy of the weights holds: it takes its whole cache at the start."""
    size = setup.trained if sizes.copy_dtype == "auto" else FP32 if sizes.copy_dtype == "float32" else BF16
    assert sizes.cache_bytes is not None
    return {"engine weights": policy.parameters * size, "engine KV cache": sizes.cache_bytes}


def _scoring(models: list[SizedModel], sizes: PassSizes, setup: TrainerSetup) -> dict[str, int]:
    tokens = sizes.update_rows * sizes.update_width
    return {
        "offloaded weights, while in use": max(
            (m.parameters * m.weight_bytes(setup) for m in models if m.offloaded), default=0
        ),
        "forward pass": tokens * max(m.widest(setup.compute) for m in models),
        "logits": max((_logits(m, sizes, setup, 1) for m in models if m.causal), default=0),
    }
