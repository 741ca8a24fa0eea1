"""Exponential moving average of a network's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Module = TypeVar("Module", bound=nn.Module)


class EMA(Generic[Module]):
    """A second network whose weights follow `module` with a half-life of `half_life` images.

    As in EDM (Karras et al. 2022, appendix F.2) the half-life is at most `ramp` of the images seen,
    so that early averages forget the random start.
    """

    def __init__(self, module: Module, half_life: float, *, ramp: float = 0.05) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.half_life = half_life
        self.ramp = ramp

    @torch.no_grad()
    def update(self, module: Module, *, images_seen: int, batch_size: int) -> None:
        """Take in the weights after one optimizer step on `batch_size` images."""
        half_life = max(min(self.half_life, self.ramp * images_seen), 1e-8)
        keep = 0.5 ** (batch_size / half_life)
        average = get_ema_multi_avg_fn(keep)
        average(list(self.module.parameters()), list(module.parameters()), None)
