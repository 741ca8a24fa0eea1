"""A second module of the same parts."""

import copy
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def twin_of(module: Module) -> Module:
    """A module that shares the parts, weights and draws of another, but not the places they are in.

    What one of the two gets later, be it a part, a weight or a hook, is not the other's.
    """
    twin = copy.copy(module)
    # `copy` leaves both the dictionaries in which PyTorch keeps a module's parts and hooks.
    kept = {name: copy.copy(it) for name, it in vars(twin).items() if isinstance(it, dict | set)}
    vars(twin).update(kept)
    return twin
