"""Construction of networks whose weights are loaded afterwards."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

Module = TypeVar("Module", bound=nn.Module)
RANDOM = {
    "bernoulli_", "exponential_", "normal", "normal_", "rand", "randint", "randn", "random_",
    "randperm", "uniform_",
}  # fmt: skip


def build(make: Callable[[], Module]) -> Module:
    """The module that `make` returns: on the CPU, in float32, its weights drawn from a fixed seed.

    The caller's random generators, default device and default precision stay as they are and have
    no influence, also where other threads draw at the same time.

    Raises:
        ValueError: the default precision of torch is neither float32 nor float64.
    """
    if torch.get_default_dtype() not in (torch.float32, torch.float64):
        raise ValueError(
            f"models are built in float32, but torch's default is {torch.get_default_dtype()}: "
            "call torch.set_default_dtype(torch.float32) before, and model.to(...) afterwards"
        )
    with torch.device("cpu"), OwnGenerator():
        return make().float()


def skeleton(make: Callable[[], Module], where: object) -> Module:
    """The module that `make` returns, on the meta device: shapes without memory.

    Raises:
        ValueError: there is no such module; `where` is the file that describes it.
    """
    try:
        with torch.device("meta"):
            return make()
    except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{where} describes a network that cannot be built: {error}") from error


class OwnGenerator(TorchFunctionMode):
    """Context in which random functions on this thread use a generator of its own by default."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator("cpu").manual_seed(0)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        draws = "generator" in kwargs or getattr(func, "__name__", "") in RANDOM
        if draws and kwargs.get("generator") is None:
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)
