"""Published files read as tensors and plain data: nothing else is made of them, and nothing runs.

Files of torch.save go through torch's own weights-only reader, with NumPy scalars read as plain
numbers. EDM's are plain pickles whose objects carry the source code of their classes, which their
own reader executes; here such an object becomes a `Node`, and its source is left unread. Tensors
inside are files of torch.save again.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from io import SEEK_END, BytesIO
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from rdc.hub.safe_pickle import AllowListUnpickler, require_bounded

# How files of torch.save start: a zip archive, or the magic number of the format before it.
ZIP_START = b"PK\x03\x04"
TORCH_STARTS = (ZIP_START, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")

# Number of values that a file of any size may hold; a larger one may hold one more for every byte.
SMALLEST_LIMIT = 100_000


class Node:
    """An object of a pickle: the name of its class, and its attributes. It can do nothing."""

    class_name = "object"
    attributes: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        if type(state) is not dict:
            raise pickle.UnpicklingError(f"an object has a {type(state).__name__} as its state")
        self.attributes = state

    def tensors(self) -> dict[str, Tensor]:
        """A module's parameters and buffers by dotted name: its state dictionary."""
        found = {
            name: value
            for kind in ("_parameters", "_buffers")
            for name, value in self._items(kind).items()
            if value is not None
        }
        for name, child in self._items("_modules").items():
            if child is not None:
                inner = self.child(name).tensors()
                found |= {f"{name}.{key}": value for key, value in inner.items()}
        return found

    def child(self, name: str) -> "Node":
        """A module of this module."""
        child = self._items("_modules").get(name)
        if not isinstance(child, Node):
            raise ValueError(f"its {self.class_name} has no module {name!r}")
        return child

    def _items(self, kind: str) -> dict[str, Any]:
        items = self.attributes.get(kind)
        if not isinstance(items, dict):
            raise ValueError(f"its {self.class_name} is not a module: it has no {kind}")
        return items


def read(path: Path) -> Any:
    """Read a file of torch.save or of EDM: containers, tensors, plain values and `Node`s.

    Raises ValueError for any other content, and names the global that the pickle asks for.
    """
    if not path.is_file():
        raise FileNotFoundError(f"source: {path} is not a file")
    try:
        with path.open("rb") as file:
            return _load(file)
    except Exception as error:
        # Not `from error`: torch's message advises to load such a file unsafely.
        raise ValueError(
            f"source: {path} is refused: {_reason(error)}; nothing in it was executed"
        ) from None


def _load(file: IO[bytes]) -> Any:
    start = file.read(max(map(len, TORCH_STARTS)))
    file.seek(0)
    torch_made = start.startswith(TORCH_STARTS)
    document = _load_torch(file) if torch_made else AllowListUnpickler(file, ALLOWED).load()
    require_bounded(document, SMALLEST_LIMIT + file.seek(0, SEEK_END))
    _require_own_values(document)
    return document


def _require_own_values(document: Any, name: str = "") -> None:
    """Refuse tensors that repeat values, as `expand` does: a few bytes can have any shape."""
    if isinstance(document, Tensor) and document.layout == torch.strided:
        held = document.untyped_storage().nbytes() // document.element_size()
        if document.numel() > held:
            raise pickle.UnpicklingError(
                f"{name or 'a tensor'} of shape {tuple(document.shape)} repeats {held} values; "
                "write it with tensor.contiguous()"
            )
    inside = document.attributes if isinstance(document, Node) else document
    if isinstance(inside, list | tuple | set | frozenset):
        inside = dict(enumerate(inside))
    if isinstance(inside, Mapping):
        for key, value in inside.items():
            _require_own_values(value, f"{name}.{key}".removeprefix("."))


def _load_torch(file: IO[bytes]) -> Any:
    # score_sde's learning rates are NumPy scalars, which torch alone refuses. torch keeps what is
    # allowed in one list for the whole process, therefore the lock.
    _require_stored(file)
    with _TORCH_LOCK, torch.serialization.safe_globals(_NUMPY_SCALARS):
        return torch.load(file, map_location="cpu", weights_only=True)


def _require_stored(file: IO[bytes]) -> None:
    """Refuse an archive whose members are larger than itself: torch.save compresses nothing."""
    zipped = file.read(len(ZIP_START)) == ZIP_START
    file.seek(0)
    if zipped:
        with zipfile.ZipFile(file) as archive:
            inflated = sum(member.file_size for member in archive.infolist())
        if inflated > (size := file.seek(0, SEEK_END)):
            raise pickle.UnpicklingError(
                f"its archive of {size} bytes expands to {inflated}, which torch.save never writes"
            )
    file.seek(0)


def _reason(error: Exception) -> str:
    message = str(error) or type(error).__name__
    if asked := re.search(r"GLOBAL ([\w.]+)", message):
        return f"it asks for {asked[1].rstrip('.')}, which is not allowed"
    if ours := re.search(r"it has a NumPy value .* not a number", message):
        return ours[0]
    if "weights_only" in message:
        return "torch's weights-only reader finds more in it than tensors and plain values"
    return message.splitlines()[0]


def _object(meta: Any) -> Node:
    """An object of EDM's persistent classes, without `module_src`, the code that comes along."""
    node = Node()
    node.class_name = str(meta["class_name"])
    node.__setstate__(meta["state"])
    return node


def _storage(content: Any) -> Tensor:
    storage = _load_torch(BytesIO(content))
    if not torch.is_storage(storage):
        raise pickle.UnpicklingError(f"a tensor's storage is a {type(storage).__name__}")
    return torch.empty(0, dtype=storage.dtype).set_(storage)  # type: ignore[call-overload]


def _tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    # In contrast to Tensor.set_, this refuses what is out of bounds.
    return storage.as_strided(size, stride, offset)


class _Dtype:
    """A NumPy type. NumPy's own would take any state, and one that does not fit breaks memory."""

    order = "|"

    def __init__(self, code: Any, *_: Any) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", str(code)):
            raise pickle.UnpicklingError(f"it has a NumPy value of type {code!r}, not a number")
        self.code = str(code)

    def __setstate__(self, state: Any) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "|")


def _scalar(dtype: _Dtype, content: bytes) -> Any:
    (value,) = np.frombuffer(content, np.dtype(dtype.order + dtype.code))
    return value.item()


NUMPY: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}
_NUMPY_SCALARS: list[Any] = [(made, ".".join(name)) for name, made in NUMPY.items()]
_TORCH_LOCK = Lock()

CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")
DTYPES = ("float16", "bfloat16", "float32", "float64", "uint8", "int32", "int64", "bool")
ALLOWED: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _object,
    ("dnnlib.util", "EasyDict"): dict,
    **{("torch.nn.modules.container", name): Node for name in CONTAINERS},
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    **NUMPY,
    **{("torch", name): getattr(torch, name) for name in DTYPES},
}
