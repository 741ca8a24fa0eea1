"""Hashes tell weights and data apart by every bit, and by nothing else."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from rdc import Denoiser
from rdc.hub.checkpoint import PACKAGED
from rdc.hub.weights import sha256
from rdc.runs.fingerprints import tensors_hash, weights_hash


def network() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    module.register_buffer("unsaved", torch.arange(3.0), persistent=False)
    return module


def test_every_tensor_of_a_module_counts() -> None:
    known = {weights_hash(network())}
    for name in [name for name, _ in (*network().named_parameters(), *network().named_buffers())]:
        module = network()
        owner, _, last = name.rpartition(".")
        with torch.no_grad():
            getattr(module.get_submodule(owner), last).view(-1)[-1:].add_(1)
        known.add(weights_hash(module))
    assert len(known) == 1 + 8


def test_only_names_and_values_of_a_module_count() -> None:
    module = network().requires_grad_(False).eval().to(memory_format=torch.channels_last)
    assert weights_hash(module) == weights_hash(network())
    assert weights_hash(network().double()) != weights_hash(network())


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]
)
def test_tensors_of_every_type_have_a_hash(dtype: torch.dtype) -> None:
    values = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    others = (values[:1], values[0], values[0, 0], values[:, :1])
    hashes = {tensors_hash({"a": tensor}) for tensor in (values, *others)}
    assert len(hashes) == 5
    assert tensors_hash({"a": values.T.contiguous().T}) == tensors_hash({"a": values})
    assert tensors_hash({"b": values}) != tensors_hash({"a": values})


def test_files_and_folders_have_hashes_of_their_content(tmp_path: Path) -> None:
    weights = PACKAGED / "digits" / "model.safetensors"
    assert weights_hash("digits") == weights_hash(PACKAGED / "digits") == sha256(weights)
    copy = shutil.copy(weights, tmp_path / "copy.pth")
    assert weights_hash(copy) == weights_hash(str(copy)) == sha256(weights)
    model = Denoiser.from_pretrained("digits")
    assert weights_hash(model) == weights_hash(Denoiser.from_pretrained("digits"))
    with pytest.raises(FileNotFoundError, match=r"model='nothing'"):
        weights_hash("nothing")
