"""The door of every attack."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from evaluation.attacks.norms import Norm


def checked(
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "linf",
    seeds: Sequence[int] | None = None,
    **counts: int,
) -> list[int]:
    """The images' seeds, by default 0 to B - 1; raises ValueError for what no attack can use.

    `counts` are the attack's numbers of steps, restarts and the like, each at least 1.
    """
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise ValueError(
            f"images: shape {tuple(images.shape)} and {images.dtype} must be (B, C, H, W), B at "
            "least 1, and floating point"
        )
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(
            f"images: values from {images.min():g} to {images.max():g} must lie in [0, 1]; "
            "normalize inside the model"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels: shape {tuple(labels.shape)} and {labels.dtype} must be ({len(images)},) and "
            "int64: one class per image"
        )
    if labels.min() < 0:
        raise ValueError(f"labels: {labels.min()} is no class; they count from 0")
    if norm not in get_args(Norm):
        raise ValueError(f"norm={norm!r} must be one of {get_args(Norm)}")
    most = 1 if norm == "linf" else images[0].numel() ** 0.5
    if not 0 <= eps <= most:
        raise ValueError(
            f"eps={eps} must be in [0, {most:g}], the size of the box in {norm}: it is on the "
            "[0, 1] scale of images"
        )
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}={count} must be at least 1")
    if seeds is None:
        return list(range(len(images)))
    if len(seeds) != len(images):
        raise ValueError(f"seeds: {len(seeds)} of them for {len(images)} images; give one each")
    return [int(seed) for seed in seeds]
