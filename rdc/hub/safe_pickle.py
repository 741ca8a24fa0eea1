"""Unpickling restricted to plain data and an explicit list of classes and functions."""

import pickle
import pickletools
from collections.abc import Mapping
from functools import partial
from types import FunctionType
from typing import IO, Any


class AllowListUnpickler(pickle.Unpickler):
    """Unpickler of containers, bytes, text and numbers, and of the objects in `allowed`.

    allowed: what a pickle gets for (module, name).

    A pickle that asks for any other global raises pickle.UnpicklingError, which names it; nothing
    is imported. So does one that asks for more memory than its size explains. `file` is seekable.
    """

    def __init__(
        self, file: IO[bytes], allowed: Mapping[tuple[str, str], Any], *, encoding: str = "ASCII"
    ) -> None:
        super().__init__(file, encoding=encoding)
        self._allowed = allowed
        self._file = file

    def load(self) -> Any:
        """Read the pickle. Raises pickle.UnpicklingError or ValueError if it is refused."""
        start = self._file.tell()
        _require_small_memo(self._file)
        self._file.seek(start)
        return super().load()

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            found = self._allowed[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which is not allowed"
            ) from None
        # A pickle can set attributes of what it gets: those of our own functions stay ours.
        return partial(found) if isinstance(found, FunctionType) else found


def _require_small_memo(file: IO[bytes]) -> None:
    """Refuse a memo index larger than the number of instructions before it.

    The unpickler allocates its memo up to the largest index, and every object in it costs an
    instruction at least: 9 bytes can ask for gigabytes.
    """
    for count, (code, index, _) in enumerate(pickletools.genops(file)):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(index or 0) <= count:
            raise pickle.UnpicklingError(
                f"it asks for a memo of {index} objects after {count} instructions"
            )


def require_bounded(document: Any, limit: int) -> None:
    """Refuse containers that hold, directly and in each other, more than `limit` values.

    A value that stands in several places counts each time, because whoever walks through the
    containers meets it each time: a few bytes can mean 2^60 values. Raises pickle.UnpicklingError,
    also for containers that hold themselves.
    """
    sizes: dict[int, int] = {}

    def size(value: Any) -> int:
        if isinstance(value, dict):
            parts = [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            parts = [*value]
        else:
            parts = [getattr(value, "attributes", None)]
            if parts == [None]:
                return 1
        if id(value) not in sizes:
            sizes[id(value)] = limit + 1  # until it is known: what holds itself has no end
            sizes[id(value)] = 1 + sum(map(size, parts))
        return sizes[id(value)]

    if size(document) > limit:
        raise pickle.UnpicklingError(
            f"its containers hold more than {limit} values, counting shared ones in every place"
        )
