"""Arrays of images and labels in .npz and .npy files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdc.choices import Split
from rdc.data.dataset import Dataset, class_numbers, hold_out, numbers_as_names, origin

PARTS: dict[Split, tuple[tuple[str, str], ...]] = {
    "train": (("train_images", "train_labels"), ("x_train", "y_train")),
    "validation": (("val_images", "val_labels"), ("x_val", "y_val")),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
    "all": (("images", "labels"), ("x", "y")),
}
"""Names of the arrays of a split in a .npz: those of MedMNIST, and those of Keras."""
FORM = "a .npz with the arrays {0}_images and {0}_labels"


def read_arrays(file: Path, split: Split) -> Dataset:
    """A split of a .npz, or all images of a .npy with its `labels.npy` beside it.

    The arrays are as `Dataset.of` takes them; a .npz may also have `class_names`, by default "0",
    "1", ... up to the highest label of all splits.

    Raises:
        ValueError, FileNotFoundError: the file is broken or has other arrays; nothing is unpickled.
    """
    if file.suffix == ".npy":
        origin(split, ["all"], file, FORM)
        beside = file.with_name("labels.npy")
        with _opened(file) as images, _opened(beside) as labels, _naming(file):
            return Dataset.of(images, labels)
    with _opened(file) as arrays:
        found = {each: names for each in PARTS for names in PARTS[each] if set(names) <= {*arrays}}
        if not found:
            raise ValueError(
                f"data: {file} has the arrays {list(arrays)}; give images and labels, or "
                "train_images, train_labels, test_images, test_labels"
            )
        wanted, shared = origin(split, found, file, FORM)
        images, labels = (_member(file, arrays, name) for name in found[wanted])
        names = _class_names(file, arrays, [labels for _, labels in found.values()])
    with _naming(file):
        data = Dataset.of(images, labels, names)
    return data.subset(torch.from_numpy(hold_out(len(data), split))) if shared else data


def _class_names(file: Path, arrays: Any, labels: Sequence[str]) -> tuple[str, ...]:
    """The names that the file has; without them, numbers for the `labels` of all splits."""
    if "class_names" in arrays:
        return tuple(map(str, _member(file, arrays, "class_names")))
    values = {name: _member(file, arrays, name) for name in labels}
    with _naming(file):
        highest = max(int(class_numbers(each, name).max()) for name, each in values.items())
    return numbers_as_names(highest + 1)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Errors about the file's arrays name it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"data: {file}: {error}") from error


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The array of a .npy, or the open archive of a .npz."""
    if not file.is_file():
        raise FileNotFoundError(f"data: {file} does not exist, or is not a regular file")
    with file.open("rb") as content:
        try:
            found = np.load(content, allow_pickle=False)
        except Exception as error:
            raise ValueError(
                f"data: {file} is not a complete {file.suffix} file: {error}"
            ) from error
        kind = ".npy" if isinstance(found, np.ndarray) else ".npz"
        if kind != file.suffix:
            raise ValueError(f"data: {file} is a {kind} file by its content; rename it")
        yield found


def _member(file: Path, arrays: Any, name: str) -> np.ndarray:
    try:
        return arrays[name]
    except Exception as error:
        raise ValueError(f"data: {file}: {name} is not a readable array: {error}") from error
