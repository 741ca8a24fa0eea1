"""Normalization in front of a network."""

from collections.abc import Sequence
from math import inf, isfinite

import torch
from torch import Tensor, nn

from rdc.images import check_floats


class Normalize(nn.Module):
    """(images - mean) / std per channel, for images (B, C, H, W) in [0, 1].

    `torch.nn.Sequential(rdc.Normalize(mean, std), network)` makes a network that was trained on
    normalized images a classifier of images in [0, 1]. Mean and standard deviation are constants:
    they follow the module's device and precision, but are no part of its `state_dict`.

    mean, std: one number per channel, or one for all channels.

    Raises:
        ValueError: std is not positive, lengths differ, or images have other channels or no floats.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        means, stds = _numbers(mean), _numbers(std)
        if not means or not all(isfinite(each) for each in means):
            raise ValueError(f"mean={mean!r} must be finite numbers, one per channel or one")
        if not stds or not all(0 < each < inf for each in stds):
            raise ValueError(f"std={std!r} must be positive numbers, one per channel or one")
        if len({len(means), len(stds), 1}) > 2:
            raise ValueError(f"mean={mean!r} and std={std!r} must have as many numbers, or one")
        self.channels = max(len(means), len(stds))
        for name, values in (("mean", means), ("std", stds)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """The normalized images: (B, C, H, W)."""
        if self.channels > 1 and images.shape[-3] != self.channels:
            raise ValueError(
                f"images: shape {tuple(images.shape)}, but mean and std are of {self.channels} "
                "channels; give images (B, C, H, W) of as many"
            )
        check_floats(images)
        return (images - self.mean) / self.std


def _numbers(values: float | Sequence[float]) -> list[float]:
    return [float(values)] if isinstance(values, int | float) else [float(each) for each in values]
