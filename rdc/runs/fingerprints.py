"""Hashes of weights and data, which identify the inputs of a run."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from rdc.data import Dataset
from rdc.hub.checkpoint import CONFIG, locate
from rdc.hub.weights import sha256, weights_sha256

ROWS = 1024


def weights_hash(model: nn.Module | str | Path) -> str:
    """SHA-256 of a model's weights, 64 hexadecimal digits.

    Of a module: over its parameters and buffers, those that are not saved included. Of a packaged
    name, directory or hub id: `rdc.hub.weights.weights_sha256`. Of another file: its content.
    """
    if isinstance(model, nn.Module):
        return tensors_hash({**dict(model.named_parameters()), **dict(model.named_buffers())})
    if Path(model).is_file():
        return sha256(Path(model))
    return weights_sha256(locate(model, CONFIG).parent)


def data_fingerprint(data: Dataset) -> str:
    """SHA-256 over a data set's pixels, their shape and peak, labels and class names."""
    facts = [tuple(data.pixels.shape), data.peak, data.class_names]
    digest = hashlib.sha256(json.dumps(facts).encode())
    # In parts: pixels that are mapped from a file may be more than fits into memory.
    for part in (*data.pixels.split(ROWS), data.labels):
        digest.update(_bytes(part))
    return digest.hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of tensors on any device, in sorted order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data
