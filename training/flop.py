"""Floating-point operations of a training step."""

import copy
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCounter(TorchDispatchMode):
    """Sum of the operations that PyTorch's own formulas count while the mode is on.

    Matrix products, convolutions and attention, 2 operations for a multiplication and an addition.
    Unlike `FlopCounterMode` it tracks no modules, and so allows `torch.autograd.grad`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def flop_per_image(task: Any, rows: slice) -> float:
    """Operations of one step per image of its batch, counted on some `rows` of step 0.

    Forward and backward passes of all of `task.losses`, with attacks and teachers. `task` stays.
    """
    network: nn.Module = copy.deepcopy(task.module)
    batch = task.batch(0)
    with FlopCounter() as counter:
        losses = task.losses(network, batch, rows)
        losses.mean().backward()
    return counter.total / len(losses)
