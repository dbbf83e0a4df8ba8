"""Weight files: tensors or an error, and no code is ever run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lit_rlhf.models.checkpoint import load_pickle, resolve_folder
from lit_rlhf.models.loading.causal import load_causal_lm
from lit_rlhf.models.loading.scalar import load_scalar_model


class _AsksForCode:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class TestPickles:
    def _as_bin(self, folder: Path) -> dict[str, torch.Tensor]:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        return weights

    def test_plain_bin_loads(self, causal_folder):
        folder = causal_folder()
        expected = self._as_bin(folder)["lm_head.weight"]
        assert torch.equal(load_causal_lm(folder).lm_head.weight, expected)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_pickle_with_code_is_refused_and_not_run(self, causal_folder, tmp_path, legacy):
        folder, marker = causal_folder(), tmp_path / "ran"
        (folder / "model.safetensors").unlink()
        torch.save(
            {"lm_head.weight": _AsksForCode(marker)},
            folder / "pytorch_model.bin",
            _use_new_zipfile_serialization=not legacy,
        )
        for load in (load_causal_lm, lambda path: load_scalar_model(path, head="load")):
            with pytest.raises(ValueError, match=r"Refused to open .*pytorch_model\.bin.*could run code.*system"):
                load(folder)
        assert not marker.exists()

    def test_safetensors_are_preferred(self, causal_folder, tmp_path):
        folder, marker = causal_folder(), tmp_path / "ran"
        torch.save({"lm_head.weight": _AsksForCode(marker)}, folder / "pytorch_model.bin")
        load_causal_lm(folder)
        assert not marker.exists()

    def test_shard_outside_the_folder_is_refused(self, causal_folder):
        folder = causal_folder()
        shutil.move(folder / "model.safetensors", folder.parent / "model.safetensors")
        index = {"metadata": {}, "weight_map": {"lm_head.weight": "../model.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="names a shard outside its own folder"):
            load_causal_lm(folder)

    def test_truncated_safetensors(self, reward_folder):
        file = reward_folder() / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            load_scalar_model(file.parent, head="load")

    def test_no_weights_at_all(self, causal_folder):
        folder = causal_folder()
        (folder / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match=r"No model\.safetensors or pytorch_model\.bin"):
            load_causal_lm(folder)


class TestCheckpointFile:
    def test_code_anywhere_in_it_is_refused(self, tmp_path):
        torch.save({"state_dict": {}, "callbacks": _AsksForCode(tmp_path / "ran")}, tmp_path / "bad.ckpt")
        with pytest.raises(ValueError, match=r"Refused to open .*bad\.ckpt.*could run code.*system"):
            load_pickle(tmp_path / "bad.ckpt")
        assert not (tmp_path / "ran").exists()

    def test_damaged(self, tmp_path):
        torch.save({"state_dict": {"w": torch.ones(1000)}}, tmp_path / "cut.ckpt")
        data = (tmp_path / "cut.ckpt").read_bytes()
        for end in (0, 10, len(data) // 2):
            (tmp_path / "cut.ckpt").write_bytes(data[:end])
            with pytest.raises(ValueError, match=r"cut\.ckpt"):
                load_pickle(tmp_path / "cut.ckpt")

    def test_other_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="No checkpoint file at"):
            load_pickle(tmp_path / "none.ckpt")
        torch.save([1], tmp_path / "b.pt")
        with pytest.raises(ValueError, match="must hold a dict of tensors, not a list"):
            load_pickle(tmp_path / "b.pt")


@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_gguf_model_is_one_line(tmp_path, named):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    path = tmp_path if named == "folder" else tmp_path / "model.gguf"
    with pytest.raises(ValueError, match=r"is a GGUF model without config.json.*convert it first"):
        resolve_folder(path)


def test_a_model_folder_that_also_holds_a_gguf_is_a_model_folder(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "config.json").write_text("{}")
    assert resolve_folder(tmp_path) == tmp_path
