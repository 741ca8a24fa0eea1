"""Data sets as tensors: images in [0, 1], labels, class names and fixed splits."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Dataset:
    """images (N, C, H, W) float32 in [0, 1]; labels (N,) int64."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, rows: Tensor | slice) -> "Dataset":
        return Dataset(self.images[rows], self.labels[rows], self.class_names)


def load(name: str, split: Split) -> Dataset:
    """A data set by name: "digits", scikit-learn's 1,797 handwritten digits of 8x8 pixels."""
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} must be one of {get_args(Split)}")
    if name != "digits":
        raise ValueError(f"data={name!r} is unknown; available: ['digits']")
    return _digits(split)


def _digits(split: Split) -> Dataset:
    # scikit-learn takes a second to import; only this needs it.
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(np.asarray(pixels)).float().view(-1, 1, 8, 8) / 16
    labels = torch.from_numpy(np.asarray(targets)).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, validation, train = order.split([500, 200, len(order) - 700])
    rows = {"train": train, "validation": validation, "test": test}[split]
    return Dataset(images[rows], labels[rows], tuple(str(digit) for digit in range(10)))
