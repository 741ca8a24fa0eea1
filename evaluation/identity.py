"""Hashes that tell a model from others: its weights, its settings, and the source of its code."""

import functools
import hashlib
import inspect
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.factories import as_module
from rdc.noise import Noise
from rdc.runs.fingerprints import tensors_hash, weights_hash

STANDARD = frozenset({"torch", *sys.stdlib_module_names})
OURS = frozenset({"rdc", "purification", "evaluation"})
OF_TORCH = frozenset(vars(nn.Module()))
PRINTED = (
    *(bool, int, float, complex, str, bytes, type(None), slice, range, Enum, np.generic),
    *(Path, torch.dtype, torch.device),
)


def identity(model: nn.Module | Callable[[Tensor], Any], name: str) -> dict[str, str]:
    """Hashes of a model's weights, settings and source, by description.

    Settings are the public attributes of its modules and of the objects in them; names that begin
    with an underscore are taken for caches, unless they hold networks. Of a function they are the
    variables that it refers to. The source is that of classes and functions outside this library
    and torch; what was typed into a console has none.
    """
    module, description = as_module(model), Description()
    settings = description.of(module)
    return {
        f"weights of the {name}": weights_hash(module),
        f"settings of the {name}": _digest(settings),
        f"source of the {name}": _digest(description.sources),
    }


class Description:
    """Values as JSON, and the source of the code that they consist of by name."""

    def __init__(self) -> None:
        self.sources: dict[str, str] = {}
        # Objects that were described; held, so that no other one gets the id of one of them.
        self._objects: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        """The description of a value; its source goes to `sources`."""
        match value:
            case Tensor():
                return tensors_hash({"": value})
            case np.ndarray() if value.dtype != object:
                return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
            case Noise():
                return [value.mode, value.seed, value.stream]
            case Mapping():
                return [[str(key), self.of(item)] for key, item in value.items()]
            case list() | tuple():
                return [self.of(item) for item in value]
            case set() | frozenset():
                return sorted(map(str, value))
            case functools.partial():
                return [self.of(part) for part in (value.func, value.args, value.keywords)]
            case MethodType():
                return [self.of(value.__self__), _name(value)]
            case type() | BuiltinFunctionType():
                return _name(value)
            case _ if isinstance(value, PRINTED):
                return repr(value)
        if id(value) in self._objects:
            return "as before"
        self._objects[id(value)] = value
        if isinstance(value, FunctionType):
            return [_name(value), *self._named(self._referred(value))]
        self._add_source(type(value))
        return [_name(type(value)), *self._named(_attributes(value))]

    def _named(self, values: Mapping[str, Any]) -> Iterator[Any]:
        for name, value in sorted(values.items()):
            yield [name, self.of(value)]

    def _referred(self, function: FunctionType) -> dict[str, Any]:
        """Defaults of a function, and the variables outside that it uses, but for known code."""
        if _known(function):
            return {}
        self._add_source(function)
        found = inspect.getclosurevars(function)
        code = (ModuleType, type, BuiltinFunctionType)
        used = {
            name: of for name, of in found.globals.items()
            if not (isinstance(of, code) or (isinstance(of, FunctionType) and _known(of)))
        }  # fmt: skip
        defaults = [function.__defaults__, function.__kwdefaults__]
        return {**used, **found.nonlocals, "defaults": defaults}

    def _add_source(self, code: type | FunctionType) -> None:
        if _known(code):
            return
        try:
            self.sources[_name(code)] = inspect.getsource(code)
        except (OSError, TypeError):  # typed into a console, or made by C
            return


def _attributes(value: Any) -> dict[str, Any]:
    """Public attributes and networks of an object; of a module also its tensors."""
    kind = type(value)
    if isinstance(value, nn.Module):
        own = {name: of for name, of in vars(value).items() if name not in OF_TORCH}
        parts = (value.named_children(), value.named_parameters(recurse=False),
                 value.named_buffers(recurse=False))  # fmt: skip
        return _public(own) | {name: of for part in parts for name, of in part}
    # In others of Python itself, such as loggers, much changes that is no setting.
    if _package(kind) in STANDARD and kind not in (Namespace, SimpleNamespace):
        return {}
    slots = {name: getattr(value, name, None) for name in getattr(kind, "__slots__", ())}
    found = slots | getattr(value, "__dict__", {})
    if _package(kind) in OURS:
        return _public(found)
    # A network is no cache, whatever its name.
    return _public(found) | {name: of for name, of in found.items() if isinstance(of, nn.Module)}


def _public(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: of for name, of in values.items() if not name.startswith("_")}


def _known(code: type | FunctionType) -> bool:
    """True for code whose version a run records: that of Python, torch and this library."""
    return _package(code) in STANDARD | OURS


def _package(code: type | FunctionType) -> str:
    return str(code.__module__).partition(".")[0]


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _digest(described: Any) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
