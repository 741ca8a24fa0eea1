"""Models from a user's own code: `package.module:function` or `path/to/file.py:function`."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn


class Callback(nn.Module):
    """A function from [0, 1] images (B, C, H, W) to logits (B, K), as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Any:
        return self.function(images)


def from_factory(name: str) -> nn.Module:
    """The module that a factory returns, in evaluation mode.

    Raises:
        ValueError: the file, the module or the function does not exist, or returns no callable.
    """
    function = name.rpartition(":")[2]
    factory = getattr(imported(name), function, None)
    if not callable(factory):
        raise ValueError(f"factory {name}: {source_file(name)} has no function {function}")
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise ValueError(
            f"factory {name}: {error}; give a function without arguments that returns the model"
        ) from error
    made = factory()
    if not callable(made):
        raise ValueError(
            f"factory {name}: returned {type(made).__name__}; return a torch.nn.Module, or a "
            "function, from [0, 1] images (B, C, H, W) to logits (B, K)"
        )
    return as_module(made).eval()


def as_module(model: Callable[[Tensor], Any]) -> nn.Module:
    """The same module, or a function as one."""
    return model if isinstance(model, nn.Module) else Callback(model).eval()


def imported(name: str) -> ModuleType:
    """The Python module of a factory, imported once."""
    place = name.rpartition(":")[0]
    if not place.endswith(".py"):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"factory {name}: {error}; give package.module:function, importable from here, or "
                "path/to/file.py:function"
            ) from error
    path = Path(place).resolve()
    if not path.is_file():
        raise ValueError(f"factory {name}: {path} does not exist; give path/to/file.py:function")
    if str(path) in sys.modules:
        return sys.modules[str(path)]
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    # The file may import its neighbors, as it may when it is run.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec.loader.exec_module(module)
    return module


def source_file(name: str) -> Path:
    """The file that holds a factory."""
    file = imported(name).__file__
    assert file is not None
    return Path(file)
