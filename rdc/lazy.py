"""Packages whose names are imported at first use, so that `--help` need not wait for torch.

Such a package has its names in a module `public`, and its submodules as attributes.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def attribute(package: str, name: str) -> Any:
    """The submodule or the public name `name` of a package, for its `__getattr__`."""
    if name == "__all__":  # `from rdc import *` asks for it
        return import_module(f"{package}.public").__all__
    if not name.startswith("_"):
        if find_spec(f"{package}.{name}") is not None:
            return import_module(f"{package}.{name}")
        public = import_module(f"{package}.public")
        vars(sys.modules[package]).update({each: getattr(public, each) for each in public.__all__})
        if name in public.__all__:
            return getattr(public, name)
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def names(package: str) -> list[str]:
    """The attributes of a package, for its `__dir__`."""
    return sorted({*vars(sys.modules[package]), *import_module(f"{package}.public").__all__})
