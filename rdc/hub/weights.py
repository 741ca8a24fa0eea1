"""Weights on disk: `model.safetensors`, or shards of it and their index; written and read whole."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
MAX_SHARD_SIZE = "5GB"  # the Hugging Face hub's own
DTYPES = (torch.float32, torch.bfloat16)
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def write_weights(
    module: nn.Module,
    directory: Path,
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """Write the module's tensors into `directory`, in several files where one would be too large.

    `max_shard_size`: no file is larger; bytes, or a text like "15MB" (10^6 bytes each).
    `dtype`: of the floating-point tensors. torch.bfloat16 halves the files and rounds every weight
        by at most 1/256 of its size.
    What the directory held before stays until all new files are written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} must be one of {DTYPES}")
    tensors = {name: _stored(tensor, dtype) for name, tensor in module.state_dict().items()}
    room = _room(tensors, max_shard_size)
    before = set(_names(directory))
    partial = directory / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_torch_state_dict(tensors, partial, max_shard_size=room)
        written = _names(partial)
        for name in written:
            os.replace(partial / name, directory / name)
    finally:
        shutil.rmtree(partial)
    for name in before - set(written):
        (directory / name).unlink()


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor.contiguous()


def _room(tensors: dict[str, Tensor], max_shard_size: int | str) -> int:
    """Bytes of tensors that fit into a file beside its header."""
    size = _bytes(max_shard_size)
    header = sum(150 + len(name) for name in tensors)  # of all tensors, more than any file needs
    name, largest = max(tensors.items(), key=lambda item: item[1].nbytes)
    if largest.nbytes + header > size:
        raise ValueError(
            f"max_shard_size={max_shard_size!r} is too small: the largest tensor, {name}, takes "
            f"{largest.nbytes:,} bytes, and a file's header up to {header:,}"
        )
    return size - header


def _bytes(size: int | str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]B)", str(size))
    if isinstance(size, str) and match:
        return int(float(match[1]) * UNITS[match[2]])
    if isinstance(size, int) and size > 0:
        return size
    raise ValueError(f"max_shard_size={size!r} must be a text like '15MB' or a number of bytes")


def _names(directory: Path) -> list[str]:
    """The files of either layout that are there."""
    found = [name for name in (WEIGHTS, INDEX) if (directory / name).is_file()]
    return found + sorted(path.name for path in directory.glob(SHARDS))


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model, one or its shards in order.

    Raises:
        FileNotFoundError: there are none, or the index names one that is missing.
        ValueError: the index is broken, or there are files that do not belong together.
    """
    index = directory / INDEX
    names, found = _names(directory), directory / WEIGHTS
    if not index.is_file():
        if not found.is_file():
            raise FileNotFoundError(
                f"model={str(directory)!r}: {found} does not exist, and {INDEX} neither"
            )
        named = [WEIGHTS]
    else:
        named = sorted(set(_weight_map(index).values()))
        for name in named:
            if not (directory / name).is_file():
                raise FileNotFoundError(
                    f"model={str(directory)!r}: {index} names {name}, which does not exist; copy "
                    "or download the model again"
                )
    if others := sorted(set(names) - {INDEX, *named}):
        raise ValueError(
            f"model={str(directory)!r}: {', '.join(others)} beside {', '.join(named)}: weights of "
            "two models; remove those that do not belong"
        )
    return [directory / name for name in named]


def _weight_map(index: Path) -> dict[str, str]:
    """The file of every tensor."""
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not a safetensors index: {error!r}") from error
    plain = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} is not a safetensors index: its weight_map names no tensors")
    # Nothing outside of the folder is read, whatever an index asks for.
    for name in weight_map.values():
        if not isinstance(name, str) or not plain.fullmatch(name):
            raise ValueError(f"{index}: {name!r} is not the name of a shard")
    return weight_map


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a model, by name, in the precision of the files."""
    files = weight_files(directory)
    index = directory / INDEX
    if not index.is_file():
        return _read(files[0])
    weight_map = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for file in files:
        part = _read(file)
        promised = {name for name, holder in weight_map.items() if holder == file.name}
        if part.keys() != promised:
            raise ValueError(
                f"{file} does not hold what {index.name} says: missing "
                f"{sorted(promised - part.keys())}, extra {sorted(part.keys() - promised)}"
            )
        tensors |= part
    return tensors


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file: {error}") from error


def load_weights(module: nn.Module, directory: Path) -> None:
    """Fill `module` from the weights in `directory`, which must match it exactly.

    The module keeps its own precision: weights that were stored as bfloat16 become float32.
    """
    tensors: dict[str, Any] = read_weights(directory)
    where = directory / (INDEX if (directory / INDEX).is_file() else WEIGHTS)
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{where} does not fit the network in its config.json: {error}") from error
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(f"{where}: NaN or infinity in {broken}")


def weights_sha256(directory: Path) -> str:
    """What identifies weights: the file's SHA-256, or that of the list that `sha256sum` makes.

    The list has a line "HASH  NAME" for every shard, in order.
    """
    files = weight_files(directory)
    if [file.name for file in files] == [WEIGHTS]:
        return sha256(files[0])
    lines = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
