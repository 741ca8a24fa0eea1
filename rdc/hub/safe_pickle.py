"""Unpickling restricted to plain data and an explicit list of classes and functions."""

import pickle
from collections.abc import Mapping
from functools import partial
from types import FunctionType
from typing import IO, Any


class AllowListUnpickler(pickle.Unpickler):
    """Unpickler of containers, bytes, text and numbers, and of the objects in `allowed`.

    allowed: what a pickle gets for (module, name).

    A pickle that asks for any other global raises pickle.UnpicklingError, which names it; nothing
    is imported.
    """

    def __init__(
        self, file: IO[bytes], allowed: Mapping[tuple[str, str], Any], *, encoding: str = "ASCII"
    ) -> None:
        super().__init__(file, encoding=encoding)
        self._allowed = allowed

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            found = self._allowed[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which is not allowed"
            ) from None
        # A pickle can set attributes of what it gets: those of our own functions stay ours.
        return partial(found) if isinstance(found, FunctionType) else found
