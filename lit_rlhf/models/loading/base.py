"""Frozen base models, as skeletons on weights that several models share."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from lit_rlhf.models.loading.origin import Origin
from lit_rlhf.models.loading.pretrained import load_pretrained
from lit_rlhf.models.loading.run_dtype import run_dtype
from lit_rlhf.models.shared_base import base_for, keep_alive, live_base, skeleton


def load_base(
    found: Origin,
    *,
    kind: str | None,
    trunk: bool,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The base of a model, frozen, on weights that it shares with every other one on the same folder.

    Args:
        found: Where the model comes from.
        kind: How the weights are kept: the name of a dtype, `nf4`, or None for the run's dtype.
        trunk: The base model alone, without an LM head.
        attn_implementation: As in transformers; None takes its default for the architecture.
        trust_remote_code: Run Python files that come with the model.

    Raises:
        ValueError: Weights are missing, damaged, or a pickle with code; bitsandbytes is not installed.
    """
    auto, key = _auto_class(found.base, trust_remote_code=trust_remote_code)
    name = kind_name(kind)
    loading = {"attn_implementation": attn_implementation, "trust_remote_code": trust_remote_code}
    base = base_for(key, name, lambda: _load(auto, found.base, name, loading))
    model = skeleton(base)
    if attn_implementation is not None and model.config._attn_implementation != attn_implementation:
        model.set_attn_implementation(attn_implementation)
    if trunk:
        model = model.base_model
        keep_alive(model, base)
    return model


def kind_name(kind: str | None) -> str:
    """The name of a dtype, or `nf4`, of ``AdapterConfig.base``: None is the run's dtype."""
    return str(run_dtype()).removeprefix("torch.") if kind is None else kind


def live_kind(found: Origin, *, trust_remote_code: bool = False) -> str | None:
    """How the weights of ``found``'s base are kept by a model that is alive; None where there is none."""
    live = live_base(_auto_class(found.base, trust_remote_code=trust_remote_code)[1])
    return None if live is None else live.kind


def _auto_class(folder: Path, *, trust_remote_code: bool) -> tuple[Any, tuple[str, str]]:
    """The class to read a folder into, and the name its weights go by: one with an LM head where it has one."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    names = config.architectures or [""]
    causal = names[0] in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() or names[0].endswith("ForCausalLM")
    auto = AutoModelForCausalLM if causal else AutoModel
    return auto, (str(folder.resolve()), auto.__name__)


def _load(auto: Any, folder: Path, kind: str, loading: dict[str, Any]) -> Any:
    if kind != "nf4":
        return load_pretrained(auto, folder, dtype=kind, **loading)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("`adapter.base` (nf4) needs bitsandbytes: pip install 'lit-rlhf[qlora]'.")
    from transformers import BitsAndBytesConfig

    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    options = {"quantization_config": four_bits, "device_map": {"": "cpu"}}
    model = load_pretrained(auto, folder, dtype=dtype, **loading, **options)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # In eval mode on such a CPU it would repack the weight in place, for a product that has no gradient.
            module.support_avx512bf16_for_cpu = False
    return model
