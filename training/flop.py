"""Floating-point operations of a training step."""

import copy
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def flop_per_image(task: Any, rows: slice) -> float:
    """Operations of one step per image of its batch, counted on some `rows` of step 0.

    Forward and backward passes of everything in `task.losses`, attacks and teachers included, as
    PyTorch counts them: matrix products and convolutions, 2 operations for a multiplication and an
    addition. The task is left as it was.
    """
    network: nn.Module = copy.deepcopy(task.module)
    batch = task.batch(0)
    with FlopCounterMode(display=False) as counter:
        losses = task.losses(network, batch, rows)
        losses.mean().backward()
    return counter.get_total_flops() / len(losses)
