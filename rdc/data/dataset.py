"""Data sets: pixels, labels, class names, and the rows that belong to a split."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rdc.choices import Split
from rdc.images import check_images

Shape = tuple[int, int, int]

SPLITS: dict[str, Split] = {
    "train": "train", "validation": "validation", "val": "validation", "valid": "validation",
    "test": "test",
}  # fmt: skip
"""Names of splits in folders and files, and what they mean."""
HOLD_OUT_SEED = 0
HOLD_OUT_SHARE, HOLD_OUT_MOST = 10, 5_000


@dataclass(frozen=True)
class Dataset:
    """pixels (N, C, H, W), perhaps mapped from a file; labels (N,) int64, numbers of class_names.

    pixels: uint8, or float32 in [0, 1]. peak: the pixel value that means 1.0.
    notes: sentences about what was converted or reordered, for programs to print.
    """

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    peak: int = 255
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        kind = {torch.uint8: "bytes", torch.float32: "floats"}.get(self.pixels.dtype)
        if kind is None or self.pixels.ndim != 4 or (kind == "floats" and self.peak != 1):
            raise ValueError(
                f"pixels: {self.pixels.dtype} of shape {tuple(self.pixels.shape)}; give uint8, or "
                "float32 in [0, 1] and peak=1, (N, C, H, W)"
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
        """(N, C, H, W) float32 in [0, 1], a new tensor: take a subset of a large data set first."""
        return self.pixels.float() / self.peak

    @classmethod
    def of(cls, images: Any, labels: Any, class_names: Iterable[str] = ()) -> "Dataset":
        """A data set of arrays or tensors.

        images: uint8, or floats in [0, 1]: (N, C, H, W), (N, H, W, C) or (N, H, W), C 1 or 3.
        labels: whole numbers from 0, (N,) or (N, 1). class_names: by default "0", "1", ...
        """
        if isinstance(class_names, str):
            raise ValueError(f"class_names={class_names!r}: one text; give a tuple of names")
        pixels, numbers = _pixels(as_tensor(images)), class_numbers(labels)
        names = tuple(class_names) or numbers_as_names(int(numbers.max()) + 1)
        return cls(pixels, numbers, names, peak=255 if pixels.dtype == torch.uint8 else 1)

    def of_classes(self, class_names: tuple[str, ...]) -> "Dataset":
        """The same images with labels renumbered for `class_names`, which are matched by name.

        Where the names differ and one side's are the numbers from 0, or none, counts must agree.

        Raises:
            ValueError: the classes are others.
        """
        if class_names == self.class_names:
            return self
        if set(class_names) == set(self.class_names):
            order = torch.tensor([class_names.index(name) for name in self.class_names])
            note = f"labels reordered from {list(self.class_names)} to {list(class_names)}"
            return replace(
                self, labels=order[self.labels], class_names=class_names, notes=(*self.notes, note)
            )
        if not (_numbered(class_names) or _numbered(self.class_names)):
            mine, theirs = set(self.class_names), set(class_names)
            raise ValueError(
                f"data: other classes than the model's: only in the data {sorted(mine - theirs)}, "
                f"only in the model {sorted(theirs - mine)}; rename or remove them"
            )
        if len(class_names) not in (0, len(self.class_names)):
            raise ValueError(
                f"data: {len(self.class_names)} classes, but the model has {len(class_names)}; "
                "give data or a model of the same classes"
            )
        return self

    def subset(self, rows: Tensor | slice) -> "Dataset":
        """The images of some rows, by number or as a slice."""
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows])


def as_tensor(values: Any) -> Tensor:
    """Values on the CPU; those of an array that torch cannot share are copied."""
    if isinstance(values, np.ndarray):
        values = np.require(values, requirements=["C", "W"])
    return torch.as_tensor(values).detach().cpu()


def _pixels(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8, or float32 in [0, 1], contiguous."""
    images = images[:, None] if images.ndim == 3 else images
    shape = tuple(images.shape)
    if images.ndim != 4 or (shape[1] not in (1, 3) and shape[3] not in (1, 3)):
        raise ValueError(
            f"images: shape {shape}; give (N, C, H, W), (N, H, W, C) or (N, H, W) with 1 or 3 "
            "channels"
        )
    images = images if shape[1] in (1, 3) else images.permute(0, 3, 1, 2)
    images = images.contiguous()
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"images: {images.dtype}; give uint8, or floats in [0, 1]")
    return check_images(images.float(), tuple(images.shape[1:]))  # type: ignore[arg-type]


MOST_CLASSES = 100_000
"""Number of classes that our networks take; more labels than that are something else."""


def class_numbers(values: Any, name: str = "labels") -> Tensor:
    """(N,) int64 of labels (N,) or (N, 1); `name` is that of the labels in errors."""
    try:
        labels = as_tensor(values)
    except (TypeError, ValueError) as error:  # of torch, about text and lists of several lengths
        raise ValueError(f"{name}: {error}; give whole numbers (N,)") from error
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.ndim != 1 or not len(labels) or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"{name}: {labels.dtype} of shape {tuple(labels.shape)}; give whole numbers (N,)"
        )
    if (numbers := labels.long()).max() >= MOST_CLASSES:
        raise ValueError(
            f"{name}: up to {int(numbers.max())}; give class numbers below {MOST_CLASSES}"
        )
    return numbers


def numbers_as_names(count: int) -> tuple[str, ...]:
    """Names of classes that have none: "0", "1", ..."""
    return tuple(map(str, range(count)))


def _numbered(names: tuple[str, ...]) -> bool:
    """True for no names, and for the numbers 0, 1, 2, ... as names."""
    return names == numbers_as_names(len(names))


def origin(split: Split, available: Iterable[str], source: object, form: str) -> tuple[Split, bool]:
    """The stored split with the rows of `split`, and True if train and validation share it.

    form: of a split "{0}" that the source might have, for errors.

    Raises:
        FileNotFoundError: the source has no such split; says what to give that has.
    """
    found = sorted(available)
    if split == "all" and found:
        if split not in found:
            raise FileNotFoundError(
                f"data: {source} has no 'all' split, only {found}; give --split {found[0]}"
            )
        return split, False
    shared = "validation" not in found and split != "test"
    wanted: Split = "train" if shared else split
    if wanted not in found:
        # Programs that train have no flag for another split.
        other = ", or --split all" if wanted == "test" and found == ["all"] else ""
        raise FileNotFoundError(
            f"data: {source} has no {wanted!r} split, only {found}; give "
            f"{form.format(wanted)}{other}"
        )
    return wanted, shared


def hold_out(rows: int, split: Split) -> np.ndarray:
    """Rows of `split`, ascending, in a train split that comes without validation.

    Validation gets a tenth of them, at most 5,000, train the others: always the same ones.
    """
    # Unlike torch's and numpy's newer generators, this one is promised to never change.
    order = np.random.RandomState(HOLD_OUT_SEED).permutation(rows)
    held_out = min(rows // HOLD_OUT_SHARE, HOLD_OUT_MOST)
    if split == "validation" and held_out == 0:
        raise ValueError(
            f"data: {rows} training images are too few to hold a tenth of them out; give a "
            "validation split"
        )
    return np.sort(order[:held_out] if split == "validation" else order[held_out:])


def same_classes(classes: Mapping[str, tuple[str, ...]], source: object) -> tuple[str, ...]:
    """The class names that all splits have, in the same order."""
    (first, names), *others = classes.items()
    for split, other in others:
        if set(names) != set(other):
            raise ValueError(
                f"data: {source}: classes differ: only in {first}: "
                f"{sorted(set(names) - set(other))}, only in {split}: "
                f"{sorted(set(other) - set(names))}; give every split the same classes"
            )
        if names != other:
            raise ValueError(
                f"data: {source}: {first} and {split} have the same classes in another order: "
                f"{list(names)} and {list(other)}; give every split the same order"
            )
    return names
