"""One way to start accelerate, for every trainer."""

import torch
from accelerate import Accelerator


def start_accelerator() -> Accelerator:
    """An accelerator on what the machine has.

    Without a GPU, accelerate joins several processes only when told that it is on a CPU; left to
    itself each of them would train alone.
    """
    return Accelerator(cpu=not torch.accelerator.is_available())
