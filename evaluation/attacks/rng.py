"""Randomness of attacks: every image has a seed of its own.

What an attack draws for an image depends on that image's seed alone: not on who else is in the
batch, on which process works on it, or on which images were broken before.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from rdc.choices import Norm
from rdc.norms import project, steepest, wide

T = TypeVar("T")


def spawn(seeds: Sequence[int], *path: int) -> list[int]:
    """Seeds of their own for the use that `path` names, one for each of `seeds`."""
    return [
        int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1, np.uint64)[0]) >> 1
        for seed in seeds
    ]


def pick(values: Sequence[T], index: Tensor) -> list[T]:
    """The values, such as seeds, of the images `index` (M,) int64."""
    return [values[i] for i in index.tolist()]


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator on the CPU for each seed: every device sees the same draws."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def uniform(sources: Sequence[torch.Generator], shape: Sequence[int], like: Tensor) -> Tensor:
    """U(0, 1) draws (B, *shape) in the precision and on the device of `like`, one row each."""
    rows = [torch.rand(tuple(shape), generator=source, dtype=like.dtype) for source in sources]
    return torch.stack(rows).to(like.device)


def normal(sources: Sequence[torch.Generator], shape: Sequence[int], like: Tensor) -> Tensor:
    """N(0, 1) draws (B, *shape) in the precision and on the device of `like`, one row each."""
    rows = [torch.randn(tuple(shape), generator=source, dtype=like.dtype) for source in sources]
    return torch.stack(rows).to(like.device)


def random_start(
    images: Tensor, eps: float, norm: Norm, sources: Sequence[torch.Generator]
) -> Tensor:
    """A point within `eps` of each image and in the box: uniform in the ball (L2: then projected).

    Image i draws from sources[i].
    """
    shape = images.shape[1:]
    if norm == "linf":
        low, high = (images - eps).clamp_min(0), (images + eps).clamp_max(1)
        return low + (high - low) * uniform(sources, shape, images)
    direction = steepest(normal(sources, shape, images), "l2")
    radius = uniform(sources, (), images) ** (1 / images[0].numel())
    return project(images + eps * wide(radius) * direction, images, eps, "l2")
