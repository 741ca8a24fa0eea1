"""Weights on disk: `model.safetensors`, or shards and their index."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rdc.choices import MAX_SHARD_SIZE
from rdc.config import read_json, short, some
from rdc.runs.atomic import make_folder, replace_files

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"
TRAINING = "training.json"
"""Record of the training that made the weights."""
LARGEST_HEADER = 2**24
DTYPES = (torch.float32, torch.bfloat16)
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def write_model(
    module: nn.Module,
    directory: Path,
    texts: Mapping[str, str | None],
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """Write the module's tensors and the files `texts` (name to content) into `directory`.

    dtype: of the floating-point tensors. torch.bfloat16 halves the files and rounds every weight by
        at most 1/256 of its size.
    max_shard_size: no file of weights is larger; bytes, or a text like "15MB" (10^6 bytes each).
    texts: the first one is the configuration; a content of None removes the file.

    Everything is written beside the old files before these are replaced. Meanwhile the folder has
    no configuration: a kill leaves the old model, the new one or, with a clear error, none.
    A training record of other weights is removed.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype} must be one of {DTYPES}")
    tensors = {name: _stored(tensor, dtype) for name, tensor in module.state_dict().items()}
    room = _room(tensors, max_shard_size)
    with TemporaryDirectory(dir=make_folder(directory), prefix=".model.") as temporary:
        partial = Path(temporary)
        save_torch_state_dict(tensors, partial, max_shard_size=room)
        for name, text in texts.items():
            if text is not None:
                (partial / name).write_text(text, encoding="utf-8")
        old = [*texts, *_names(directory)]
        if (directory / TRAINING).exists() and not _same_weights(partial, directory):
            old.append(TRAINING)
        replace_files(partial, directory, old=old, last=next(iter(texts)))


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor.contiguous()


def _room(tensors: dict[str, Tensor], max_shard_size: int | str) -> int:
    """Size in bytes of the tensors of a file, so that it fits with its header."""
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
    """Names of the existing files of both layouts."""
    found = [name for name in (WEIGHTS, INDEX) if (directory / name).is_file()]
    return found + sorted(path.name for path in directory.glob(SHARDS))


def _same_weights(one: Path, other: Path) -> bool:
    names = _names(one)
    same = names == _names(other)
    return same and all(sha256(one / name) == sha256(other / name) for name in names)


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
        weight_map = read_json(index)["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not a safetensors index: {error!r}") from error
    plain = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} is not a safetensors index: its weight_map names no tensors")
    # Nothing outside of the folder is read, whatever an index asks for.
    for name in weight_map.values():
        if not isinstance(name, str) or not plain.fullmatch(name):
            raise ValueError(f"{index}: {short(name)} is not the name of a shard")
    return weight_map


class Stored(NamedTuple):
    """Entry of a tensor in the header of its file; `dtype` is the name in safetensors, as F32."""

    shape: tuple[int, ...]
    dtype: str


def read_headers(directory: Path) -> dict[str, Stored]:
    """All tensors of a model by name, from the headers of its files: the weights are not read.

    Raises:
        FileNotFoundError, ValueError: as `weight_files`, or a file is broken or unlike the index.
    """
    files, index = weight_files(directory), directory / INDEX
    weight_map = _weight_map(index) if index.is_file() else None
    found: dict[str, Stored] = {}
    for file in files:
        part = _header(file)
        promised = {name for name, holder in (weight_map or {}).items() if holder == file.name}
        if weight_map is not None and part.keys() != promised:
            raise ValueError(
                f"{file} does not hold what {index.name} says: missing "
                f"{short(sorted(promised - part.keys()))}, extra "
                f"{short(sorted(part.keys() - promised))}"
            )
        found |= part
    return found


def _header(file: Path) -> dict[str, Stored]:
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
    if size > LARGEST_HEADER and file.stat().st_size > LARGEST_HEADER:
        raise ValueError(
            f"{file}: a header of {size:,} bytes, but that of a model takes no more than "
            f"{LARGEST_HEADER:,}"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {n: Stored(tuple(t.get_shape()), t.get_dtype()) for n, t in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file} is not a complete safetensors file: {error}") from error


def _tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and content of one tensor after the other."""
    for file in weight_files(directory):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)


def require_fit(module: nn.Module, directory: Path) -> None:
    """Compare names, shapes and types of the module's tensors with the headers in `directory`.

    Floats may be stored as float16, bfloat16, float32 or float64, other types only as they are.

    Raises:
        ValueError: names the tensors that are missing, too many, or of another shape or type.
    """
    found, own = read_headers(directory), module.state_dict()
    shared = sorted(found.keys() & own.keys())
    wrong = {
        "missing": sorted(own.keys() - found.keys()),
        "unexpected": sorted(found.keys() - own.keys()),
        "of another shape": [
            f"{name} {found[name].shape} for {tuple(own[name].shape)}"
            for name in shared
            if found[name].shape != tuple(own[name].shape)
        ],
        "of another type": [
            f"{name} {found[name].dtype} for {own[name].dtype}"
            for name in shared
            if found[name].dtype not in _types(own[name].dtype)
        ],
    }
    texts = [f"{kind}: {some(names)}" for kind, names in wrong.items() if names]
    if texts:
        raise ValueError(
            f"{_where(directory)} does not fit the network in its config.json; tensors "
            f"{'; tensors '.join(texts)}"
        )


def _types(dtype: torch.dtype) -> tuple[str, ...]:
    """The stored types that convert exactly, float64 where its values do."""
    if dtype.is_floating_point:
        return ("F16", "BF16", "F32", "F64")
    return {torch.bool: ("BOOL",), torch.uint8: ("U8",), torch.int8: ("I8",),
            torch.int32: ("I32",), torch.int64: ("I64",)}.get(dtype, ())  # fmt: skip


def _where(directory: Path) -> Path:
    return directory / (INDEX if (directory / INDEX).is_file() else WEIGHTS)


def load_weights(module: nn.Module, directory: Path) -> None:
    """Fill `module` from the weights in `directory`, which must fit it (see `require_fit`).

    The module keeps its own precision: weights that were stored as bfloat16 become float32.

    Raises:
        ValueError: weights are not finite, or do not convert exactly.
    """
    own = module.state_dict()
    broken, inexact = [], []
    for name, stored in _tensors(directory):
        with torch.no_grad():
            own[name].copy_(stored)
        if not torch.isfinite(stored).all():
            broken.append(name)
        elif stored.dtype == torch.float64 and not torch.equal(own[name].to(stored), stored):
            inexact.append(name)
    if broken:
        raise ValueError(f"{_where(directory)}: NaN or infinity in {some(broken)}")
    if inexact:
        raise ValueError(
            f"{_where(directory)}: float64 that {own[inexact[0]].dtype} does not hold exactly in "
            f"{some(inexact)}; round them yourself: tensor.float()"
        )


def weights_sha256(directory: Path) -> str:
    """Identity of weights: the file's SHA-256, or that of the list that `sha256sum` makes.

    The list has a line "HASH  NAME" for every shard, in order.
    """
    files = weight_files(directory)
    if [file.name for file in files] == [WEIGHTS]:
        return sha256(files[0])
    lines = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256(file: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
