"""Random models of real shapes as Hugging Face folders, and a PPO run on them, to measure and to plan."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)
BLOCK = 1_000_003
"""Random numbers that the weights repeat: a prime, so that no two rows of a matrix are the same."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama's sizes, and the rollout that is made with it.

    Attributes:
        rows: Responses per iteration.
        prompt: Tokens of each prompt.
        response: Tokens of each response; random models do not end theirs.
        minibatch: Responses an optimizer step.
        micro_batch_tokens: Tokens of a forward pass.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    rows: int = 64
    prompt: int = 256
    response: int = 256
    minibatch: int = 32
    micro_batch_tokens: int = 8192

    def config(self) -> Any:
        """The Hugging Face configuration."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.kv_heads, intermediate_size=self.inner,
            max_position_embeddings=2048, tie_word_embeddings=False, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        )  # fmt: skip


SHAPES = {
    "1b": Shape(hidden=2048, layers=22, heads=32, kv_heads=4, inner=5632, vocabulary=32000),
    "7b": Shape(hidden=4096, layers=32, heads=32, kv_heads=32, inner=11008, vocabulary=32000),
}
TINY = Shape(
    hidden=64, layers=4, heads=4, kv_heads=2, inner=96, vocabulary=128,
    rows=8, prompt=12, response=8, minibatch=4, micro_batch_tokens=64,
)  # fmt: skip


def shape_of(name: str, *, tiny: bool) -> Shape:
    """The shape of that name, or the tiny one."""
    return TINY if tiny else SHAPES[name]


def write_models(shape: Shape, folder: Path) -> None:
    """Policy and reward model in bf16, a tokenizer of letters, and prompts."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from lit_rlhf.models.loading.pretrained import quiet

    config, tokenizer = shape.config(), make_tokenizer()
    scalar = copy.deepcopy(config)
    scalar.num_labels = 1
    kinds = {"policy": (AutoModelForCausalLM, config), "reward": (AutoModelForSequenceClassification, scalar)}
    with quiet():
        for name, (kind, own) in kinds.items():
            with torch.device("meta"):
                model = kind.from_config(own, dtype=torch.bfloat16)
            fill(model.to_empty(device="cpu"))
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(len(LETTERS), (4 * shape.rows, shape.prompt), generator=generator).tolist()
    rows = [{"prompt": "".join(LETTERS[i] for i in row)} for row in letters]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@torch.no_grad()
def fill(model: torch.nn.Module) -> None:
    """Weights of a random model, quickly: a block of normal numbers over and over, ones for norms."""
    block = torch.randn(BLOCK, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
            continue
        for part in parameter.view(-1).split(BLOCK):
            part.copy_(block[: len(part)])


def make_tokenizer() -> Any:
    """One token a letter, and <pad> and <eos>."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *LETTERS])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def run_config(shape: Shape, folder: Path, device: str) -> dict[str, Any]:
    """The PPO run as YAML says it: frozen models in bf16, the reward model in host memory between its uses."""
    return {
        "trainer": {"accelerator": device, "devices": 1, "precision": "bf16-mixed"},
        "model": {
            "class_path": "PPOModule",
            "init_args": {
                "policy": str(folder / "policy"),
                "reward": {
                    "class_path": "ModelReward",
                    "init_args": {"path": str(folder / "reward"), "dtype": "bfloat16", "placement": "cpu"},
                },
                "reference": {"dtype": "bfloat16", "placement": "cpu"},
                "sampling": {"max_response_length": shape.response},
                "engine": {
                    "class_path": "TransformersEngine",
                    "init_args": {
                        "max_batch_tokens": shape.rows * (shape.prompt + shape.response),
                        "prefill_tokens": shape.micro_batch_tokens,
                        "drop_every": 16,
                    },
                },
            },
        },
        "data": {
            "class_path": "RolloutDataModule",
            "init_args": {
                "train": str(folder / "prompts.jsonl"),
                "rollout_batch_size": shape.rows,
                "minibatch_size": shape.minibatch,
                "micro_batch_tokens": shape.micro_batch_tokens,
                "max_prompt_length": shape.prompt,
            },
        },
    }


def write_config(config: dict[str, Any], folder: Path) -> list[str]:
    """The YAML file of a run, as arguments of `lit-rlhf fit`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    return ["--config", str(file)]


def fitting_layers(shape: Shape, folder: Path, device: str, memory: float) -> Shape:
    """The same shape with as many layers as `lit-rlhf plan` says fit into ``memory`` bytes.

    Memory grows by the same amount with every layer: two plans say by how much.
    """
    two, four = (needed(replace(shape, layers=layers), folder, device) for layers in (2, 4))
    most = 2 + int((memory - two) // ((four - two) / 2))
    if most < 1:
        raise MemoryError(f"not even one layer of this shape fits into {memory / 2**30:.0f} GiB")
    return replace(shape, layers=min(shape.layers, most))


def needed(shape: Shape, folder: Path, device: str) -> float:
    """Bytes that the plan asks for, with its reserve."""
    from lit_rlhf.commands.plan import RESERVE_BYTES, RESERVE_SHARE

    return planned(shape, folder, device).peak * (1 + RESERVE_SHARE) + RESERVE_BYTES


def planned(shape: Shape, folder: Path, device: str) -> Any:
    """What `lit-rlhf plan` predicts of the run; only configurations are read."""
    from lit_rlhf.commands.plan import plan

    stand_in = folder / f"plan-{shape.layers}"
    shape.config().save_pretrained(stand_in)
    arguments = write_config(run_config(shape, stand_in / "none", device), stand_in)
    return plan(arguments, devices=1, stand_in=str(stand_in))[0]
