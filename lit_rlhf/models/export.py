"""Trained weights out as plain Hugging Face folders, from live models or from a checkpoint's state dict.

A folder is written beside its target and takes its place when it is whole; an error or a kill while writing leaves what
was there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_rlhf.data.template import chat_template
from lit_rlhf.models.adapters import ADAPTER_FILE, LAYERS_FILE, base_of, save_adapter
from lit_rlhf.models.causal import unwrap
from lit_rlhf.models.checkpoint import resolve_folder
from lit_rlhf.models.fingerprint import write_fingerprint
from lit_rlhf.models.loading.pretrained import check_loaded, load_config, quiet, without_dropout
from lit_rlhf.models.scalar import ScalarHead, ScalarModel, declare, host_copy, merged, sequence_classifier
from lit_rlhf.models.shared_base import held_base

_HEAD = "head.weight"


def export_policy(
    model: nn.Module, tokenizer: Any, out: str | Path, *, dtype: torch.dtype | None = None, overwrite: bool = True,
    template: str | None = None,
) -> Path:  # fmt: skip
    """Write a causal LM (an adapter is merged into a copy) and its tokenizer with the chat template.

    Args:
        model: A Hugging Face causal LM, PEFT-wrapped or not, on any device.
        tokenizer: Saved beside it.
        out: Folder to make.
        dtype: Of the saved weights; None keeps the model's.
        overwrite: Replace an earlier export at ``out``.
        template: Named template of the training data; the folder's chat template renders it, or the tokenizer's own
            with the BOS that training puts in front.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` exists and is no model folder, or may not be replaced.
    """
    whole = merged(model)
    with _written_whole(Path(out), overwrite=overwrite) as folder, quiet():
        whole.save_pretrained(folder, state_dict=host_copy(whole.state_dict(), dtype))
        _save_tokenizer(tokenizer, folder, template)
        declare(folder, dtype=dtype, pad_token_id=tokenizer.pad_token_id)
    return Path(out)


def export_scalar(
    model: ScalarModel, tokenizer: Any, out: str | Path, *, dtype: torch.dtype | None = None, overwrite: bool = True,
    template: str | None = None,
) -> Path:  # fmt: skip
    """Write a reward model or critic that ``AutoModelForSequenceClassification`` loads, with its fingerprint.

    Args:
        model: On any device; its LM head, if it has one, is not written.
        tokenizer: Saved beside it.
        out: Folder to make.
        dtype: Of the saved weights; None keeps the model's.
        overwrite: Replace an earlier export at ``out``.
        template: Named template of the training data; the folder's chat template renders it, or the tokenizer's own
            with the BOS that training puts in front.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` exists and is no model folder, or may not be replaced.
        ValueError: The model gives a score that is not finite.
    """
    own = next(model.trunk.parameters())
    with _written_whole(Path(out), overwrite=overwrite) as folder, quiet(), _in_eval(model):
        model.save_pretrained(folder, tokenizer, dtype=dtype)
        _save_tokenizer(tokenizer, folder, template)
        write_fingerprint(folder, model, tokenizer, dtype=dtype or own.dtype, device=own.device)
    return Path(out)


def export_policy_adapter(
    model: Any, tokenizer: Any, out: str | Path, *, overwrite: bool = True, template: str | None = None
) -> Path:
    """Write a causal LM's adapter and the tokenizer: what `PeftModel.from_pretrained` puts on the base again.

    Args:
        model: A PEFT model around a causal LM, on any device.
        tokenizer: Saved beside it.
        out: Folder to make.
        overwrite: Replace an earlier export at ``out``.
        template: As for :func:`export_policy`.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` exists and is no model folder, or may not be replaced.
    """
    with _written_whole(Path(out), overwrite=overwrite) as folder, quiet():
        save_adapter(model, folder)
        _save_tokenizer(tokenizer, folder, template)
    return Path(out)


def export_scalar_adapter(
    model: ScalarModel, tokenizer: Any, out: str | Path, *, overwrite: bool = True, template: str | None = None
) -> Path:
    """Write a reward model's or critic's adapter and head, with its fingerprint.

    Plain peft puts it on `AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)`; where the trunk is
    cut, with ``num_hidden_layers`` of the file ``lit_rlhf.json``.

    Args:
        model: With a PEFT trunk, on any device.
        tokenizer: Saved beside it.
        out: Folder to make.
        overwrite: Replace an earlier export at ``out``.
        template: As for :func:`export_policy`.

    Returns:
        ``out``.

    Raises:
        FileExistsError: ``out`` exists and is no model folder, or may not be replaced.
        ValueError: The model gives a score that is not finite.
    """
    trunk: Any = model.trunk
    base = held_base(unwrap(trunk))
    own = next(p for p in unwrap(trunk).parameters() if not p.requires_grad)
    dtype = None if base is not None and base.kind == "nf4" else own.dtype
    prefix = sequence_classifier(model.config).base_model_prefix
    with _written_whole(Path(out), overwrite=overwrite) as folder, quiet(), _in_eval(model):
        save_adapter(trunk, folder, prefix=prefix, head=model.head.weight)
        layers = model.config.get_text_config().num_hidden_layers
        if layers != load_config(base_of(folder)).get_text_config().num_hidden_layers:
            (folder / LAYERS_FILE).write_text(json.dumps({"num_layers": layers}) + "\n", encoding="utf-8")
        _save_tokenizer(tokenizer, folder, template)
        write_fingerprint(folder, model, tokenizer, dtype=dtype, device=own.device)
    return Path(out)


def _save_tokenizer(tokenizer: Any, folder: Path, template: str | None) -> None:
    """Save it with a chat template that gives what the model was trained on; in memory it stays as it was."""
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = chat_template(tokenizer, template) or before
        tokenizer.save_pretrained(folder)
    finally:
        tokenizer.chat_template = before


@contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _written_whole(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder beside ``out`` that takes its place when the block ends without an error."""
    if out.exists() and not (overwrite and _is_replaceable(out)):
        reason = "is not a model folder" if overwrite else "exists already"
        raise FileExistsError(f"Nothing was exported: '{out}' {reason}.")
    # The process id keeps two writers apart.
    partial, old = (out.with_name(f".{out.name}.{kind}-{os.getpid()}") for kind in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process that had the same id: in a container all have
    partial.mkdir(parents=True)
    try:
        yield partial
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        number = _system_error(error)
        if number:
            raise OSError(number, os.strerror(number), str(out)) from error
        raise
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    partial.rename(out)
    for path in [old, *_abandoned(out)]:
        shutil.rmtree(path, ignore_errors=True)


def _abandoned(out: Path) -> list[Path]:
    """What killed processes have left beside ``out``."""
    names = re.compile(rf"\.{re.escape(out.name)}\.(?:partial|old)-(\d+)")
    found = [(path, names.fullmatch(path.name)) for path in out.parent.iterdir()]
    return [path for path, match in found if match and not _runs(int(match[1]))]


def _runs(process: int) -> bool:
    """Whether there is such a process on this machine, as far as can be asked without ending it."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True


def _system_error(error: BaseException) -> int:
    """The number of the operating system's error; safetensors has it in its words alone. 0 for any other error."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else getattr(error, "errno", None) or 0


def _is_replaceable(out: Path) -> bool:
    own = any((out / name).is_file() for name in ("config.json", ADAPTER_FILE))
    return out.is_dir() and (own or not any(out.iterdir()))


def extract_submodule_state(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one sub-module, without its prefix.

    Args:
        state: Weights of a whole LightningModule.
        prefix: Attribute name of the sub-module, such as ``policy``, without the final dot.

    Raises:
        ValueError: There are none; lists the sub-modules there are.
    """
    start = prefix + "."
    found = {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
    if not found:
        names = sorted({key.split(".", 1)[0] for key in state})
        raise ValueError(f"The checkpoint has no `{prefix}`; it has {', '.join(names) or 'nothing'}.")
    return found


def causal_lm_from_state(path: str | Path, state: dict[str, Tensor], *, trust_remote_code: bool = False) -> Any:
    """A causal LM with the configuration of ``path`` and the weights of ``state``; none of ``path``'s are read.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: A weight is missing, left over, or has another shape.
    """
    from transformers import AutoModelForCausalLM

    return _from_state(AutoModelForCausalLM, path, state, trust_remote_code=trust_remote_code)


def scalar_model_from_state(
    path: str | Path, state: dict[str, Tensor], *, trust_remote_code: bool = False
) -> ScalarModel:
    """A reward model or critic with the configuration of ``path`` and the weights of ``state``, without an LM head.

    Args:
        path: What the model was loaded from: a causal LM or a reward model.
        state: State dict of a :class:`ScalarModel`.
        trust_remote_code: Run Python files that come with ``path``.

    Raises:
        FileNotFoundError: No such folder or hub name.
        ValueError: A weight is missing, left over, or has another shape.
    """
    from transformers import AutoModel

    if _HEAD not in state:
        raise ValueError(f"These are not the weights of a scalar model: no `{_HEAD}`.")
    weights = extract_submodule_state(state, "trunk")
    trunk = _from_state(AutoModel, path, weights, trust_remote_code=trust_remote_code)
    head = ScalarHead(state[_HEAD].size(1))
    head.weight = nn.Parameter(state[_HEAD].float())
    return ScalarModel(trunk, head)


def _from_state(auto_class: Any, path: str | Path, state: dict[str, Tensor], *, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    folder = resolve_folder(path, trust_remote_code=trust_remote_code, weights=False)
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    dtype = next(value.dtype for value in state.values() if value.is_floating_point())
    with quiet():
        with torch.device("meta"):
            model_class = type(auto_class.from_config(config, trust_remote_code=trust_remote_code))
        model, info = model_class.from_pretrained(
            None, config=without_dropout(config), state_dict=state, dtype=dtype, output_loading_info=True
        )
    check_loaded("The state dict", model, info, strict=True)
    return model
