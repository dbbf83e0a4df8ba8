"""Frozen weights in host memory: one copy a machine, the same bits, whatever happens to the other ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lit_rlhf.models.frozen import FrozenModel, models_in_host_memory
from lit_rlhf.models.host_memory import share_host_memory
from tests.distributed_harness import run_dist

MIB = 2**20
BODY = """
    import torch.distributed as dist
    from tests.models.test_host_memory import checks
    dist.init_process_group("gloo")
    record(**checks(dist.get_rank()))
    dist.destroy_process_group()
"""


def tied_model(width: int, seed: int) -> nn.Module:
    """``width`` x ``width`` bf16 and fp32 weights, one of them tied, and a buffer."""
    torch.manual_seed(seed)
    model: Any = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width).bfloat16(), nn.Linear(width, width))
    model[2].weight = model[0].weight
    model.register_buffer("odd", torch.arange(5, dtype=torch.int64))
    return model


def own_memory() -> dict[str, int]:
    """MiB of this process alone, and of memory that it shares without a file."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("RssAnon", "RssShmem"))}
    return {name: int(size) // 1024 for name, size in found.items()}


def checks(rank: int) -> dict[str, Any]:
    """What one of two processes sees; in this module, so that the launch finds it."""
    models = [FrozenModel(tied_model(2048, seed), placement="cpu") for seed in (0, 1)]
    before = [[p.clone() for p in [*m.model.parameters(), *m.model.buffers()]] for m in models]
    shared = share_host_memory(models)
    after = [[*m.model.parameters(), *m.model.buffers()] for m in models]
    equal = all(torch.equal(a, b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True))
    first: Any = models[0].model
    del before
    found = {
        "shared": shared,
        "equal": equal,
        "tied": first[2].weight is first[0].weight,
        "frozen": not any(p.requires_grad for p in first.parameters()),
        "memory": own_memory(),
    }
    other = [FrozenModel(tied_model(8 + rank, 0), placement="cpu")]
    return {**found, "different models": share_host_memory(other), "nothing": share_host_memory([])}


@pytest.mark.distributed
def test_two_processes_keep_one_copy(tmp_path: Path) -> None:
    ranks = run_dist(BODY, tmp_path, launcher="torchrun", timeout=120).ranks
    sizes = 2 * (2048 * 2048 * (4 + 2)) / MIB  # two models: an fp32 weight that is tied and a bf16 one
    for found in ranks:
        assert found["shared"]
        assert found["equal"]
        assert found["tied"]
        assert found["frozen"]
        assert not found["different models"]
        assert not found["nothing"]
        assert sizes * 0.9 < found["memory"]["RssShmem"] < sizes * 1.2


def test_one_process_keeps_its_own() -> None:
    model = FrozenModel(tied_model(8, 0), placement="cpu")
    assert not share_host_memory([model])


def test_models_are_noted_where_they_are_made() -> None:
    with models_in_host_memory() as waiting:
        first = FrozenModel(tied_model(8, 0), placement="cpu")
        FrozenModel(tied_model(8, 0))
    FrozenModel(tied_model(8, 0), placement="cpu")
    assert waiting == [first]


def loading(folder: Path, dtype: str) -> int:
    """MiB of its own that a process gains by loading the model."""
    body = f"""
        from tests.models.test_host_memory import own_memory
        from lit_rlhf.models.loading.causal import load_causal_lm
        load_causal_lm({str(folder / "small")!r})
        before = own_memory()["RssAnon"]
        model = load_causal_lm({str(folder / "model")!r}, dtype={dtype!r})
        record(gained=own_memory()["RssAnon"] - before)
    """
    return int(run_dist(body, folder / dtype, processes=1, launcher="torchrun", timeout=120).ranks[0]["gained"])


def test_weights_in_their_own_dtype_are_mapped_from_the_file(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 1000}
    for name, layers in (("small", 1), ("model", 24)):
        config = LlamaConfig(**shape, num_hidden_layers=layers)
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / name)
    size = (tmp_path / "model" / "model.safetensors").stat().st_size / MIB
    assert loading(tmp_path, "bfloat16") < 0.3 * size
    assert loading(tmp_path, "float32") > 1.7 * size
