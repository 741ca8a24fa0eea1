"""Data sets as tensors: pixels, labels, class names and fixed splits."""

from collections.abc import Sequence
from pathlib import Path

import torch

from rdc.choices import Split, require_choice
from rdc.data.arrays import read_arrays
from rdc.data.cache import cached_pixels
from rdc.data.cifar import ARCHIVES, read_cifar
from rdc.data.dataset import Dataset, Shape
from rdc.data.digits import read_digits
from rdc.data.folder import read_folder
from rdc.data.parquet import parquet_files, read_parquet
from rdc.data.samples import CIFAR10_SAMPLES, read_samples
from rdc.images import convert_images, spelled

__all__ = ["Dataset", "Shape", "Split", "load"]


def load(
    data: str | Path,
    split: Split,
    *,
    shape: Shape | None = None,
    resize: bool = False,
    cache: Path | None = None,
) -> Dataset:
    """A split of a data set. `data` is one of:

    - "digits": scikit-learn's 1,797 handwritten digits of 8x8 pixels
    - "cifar10-samples": the first 20 test images of CIFAR-10, from the wheel of foolbox
    - the path of `cifar-10-python.tar.gz` or `cifar-100-python.tar.gz`, as published
    - a folder of images, `split/class/image.png`, whose classes take turns; validation may also be
      called val or valid; `class/image.png` without splits has the split "all"
    - the path of an .npz or .npy file (see `rdc.data.arrays.read_arrays`)
    - a folder of Hugging Face's parquet files, `train-00000-of-00001.parquet`, there or in `data`

    Where it has no validation split, a tenth of its training images, at most 5,000, is held
    out: "train" and "validation" are then disjoint, and the same in every run.

    shape: (C, H, W) that all images must have; by default that of the first. Gray images become
        color where that loses nothing; others of another shape are refused.
    resize: convert images of another shape instead: to C channels (1 or 3), resized until they
        cover H x W, cropped at their center. `Dataset.notes` then has a sentence about it.
    cache: folder for the decoded images of folders, by default ~/.cache/rdc; they are kept under a
        hash of everything in the split, and mapped from there.

    Raises:
        ValueError, FileNotFoundError: names the data, what is wrong and what to give.
    """
    require_choice("split", split, Split)
    if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1):
        raise ValueError(f"shape={shape} must be (C, H, W), with 1 or 3 channels and H, W >= 1")
    with torch.device("cpu"):  # whatever torch's default is
        return _load(data, split, shape, resize, cache)


def _load(
    data: str | Path, split: Split, shape: Shape | None, resize: bool, cache: Path | None
) -> Dataset:
    path = Path(data)
    if data == "digits":
        found = read_digits(split)
    elif data == CIFAR10_SAMPLES:
        found = read_samples(split)
    elif path.name in ARCHIVES:
        found = read_cifar(path, split)
    elif path.suffix in (".npy", ".npz"):
        found = read_arrays(path, split)
    elif path.is_dir():
        encoded = read_parquet(path, split) if parquet_files(path) else read_folder(path, split)
        folder = cache or Path.home() / ".cache" / "rdc"
        pixels = torch.from_numpy(cached_pixels(encoded, shape, folder, resize=resize))
        notes = (_resized_note(pixels.shape[1:], "images of"),) if resize else ()
        return Dataset(pixels, encoded.labels, encoded.class_names, notes=notes)
    else:
        raise ValueError(
            f"data={str(data)!r} is unknown; give 'digits', {CIFAR10_SAMPLES!r}, the path of "
            f"one of {sorted(ARCHIVES)}, a .npz or .npy file, or an existing folder of images "
            "(split/class/image.png or class/image.png) or parquet files"
        )
    return _of_shape(found, shape, resize, data)


def _of_shape(found: Dataset, shape: Shape | None, resize: bool, data: str | Path) -> Dataset:
    """The data if it has `shape`, or converted to it where that is asked for."""
    if shape in (None, found.shape):
        return found
    if not resize:
        raise ValueError(
            f"shape={shape}: the images of {data} are {found.shape}; give shape={found.shape} or "
            "none, or resize=True (--resize) to convert them"
        )
    images = convert_images(found.images, shape, resize=True).images
    note = _resized_note(shape, f"images ({spelled(found.shape)}) of")
    return Dataset(images, found.labels, found.class_names, peak=1, notes=(*found.notes, note))


def _resized_note(shape: Sequence[int], which: str) -> str:
    return (
        f"{which} another shape were converted to {spelled(tuple(shape))} (channels x height x "
        "width): gray or color, resized until they cover it, cropped at their center"
    )
