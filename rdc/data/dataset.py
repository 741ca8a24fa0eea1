"""What a data set is: bytes, labels, class names, and which rows belong to which split."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Split = Literal["train", "validation", "test"]
Shape = tuple[int, int, int]

HOLD_OUT_SEED = 0
HOLD_OUT_SHARE, HOLD_OUT_MOST = 10, 5_000


@dataclass(frozen=True)
class Dataset:
    """pixels (N, C, H, W) uint8, perhaps mapped from a file; labels (N,) int64.

    `peak` is the pixel value that means 1.0.
    """

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    peak: int = 255

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise ValueError(
                f"pixels: {self.pixels.dtype} of shape {tuple(self.pixels.shape)}; give uint8 "
                "(N, C, H, W)"
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise ValueError(
                f"labels: {self.labels.dtype} of shape {tuple(self.labels.shape)}; give int64 "
                f"({len(self.pixels)},), one for every image"
            )
        low, high = self.labels.aminmax() if len(self) else (0, 0)
        if low < 0 or high >= len(self.class_names):
            raise ValueError(
                f"labels: from {int(low)} to {int(high)}; give numbers of the "
                f"{len(self.class_names)} class_names, from 0"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> Shape:
        """(C, H, W) of every image."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) float32 in [0, 1], made anew: of a large data set, take a subset first."""
        return self.pixels.float() / self.peak

    def subset(self, rows: Tensor | slice) -> "Dataset":
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows])


def origin(split: Split, available: Iterable[str], source: object) -> tuple[Split, bool]:
    """The split whose rows `split` is made of, and whether train and validation share them."""
    found = sorted(available)
    shared = "validation" not in found and split != "test"
    wanted: Split = "train" if shared else split
    if wanted not in found:
        raise FileNotFoundError(
            f"source: {source} has no {wanted!r} split, only {found}; give {wanted}/class/images "
            f"or {wanted}-00000-of-00001.parquet"
        )
    return wanted, shared


def hold_out(rows: int, split: Split) -> np.ndarray:
    """The rows, ascending, that `split` has of a train split that comes without validation.

    Validation gets a tenth of them, at most 5,000, train the others: always the same ones.
    """
    # Unlike torch's and numpy's newer generators, this one is promised to never change.
    order = np.random.RandomState(HOLD_OUT_SEED).permutation(rows)
    held_out = min(rows // HOLD_OUT_SHARE, HOLD_OUT_MOST)
    if split == "validation" and held_out == 0:
        raise ValueError(
            f"source: {rows} training images are too few to hold a tenth of them out; give a "
            "validation split"
        )
    return np.sort(order[:held_out] if split == "validation" else order[held_out:])


def same_classes(classes: Mapping[str, tuple[str, ...]], source: object) -> tuple[str, ...]:
    """The class names that all splits have, in the same order."""
    (first, names), *others = classes.items()
    for split, other in others:
        if set(names) != set(other):
            raise ValueError(
                f"source: {source}: classes differ: only in {first}: "
                f"{sorted(set(names) - set(other))}, only in {split}: "
                f"{sorted(set(other) - set(names))}; give every split the same classes"
            )
        if names != other:
            raise ValueError(
                f"source: {source}: {first} and {split} have the same classes in another order: "
                f"{list(names)} and {list(other)}; give every split the same order"
            )
    return names
