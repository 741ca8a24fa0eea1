"""Data sets as tensors: pixels, labels, class names and fixed splits."""

from pathlib import Path
from typing import get_args

import torch

from rdc.data.cache import cached_pixels
from rdc.data.cifar import ARCHIVES, read_cifar
from rdc.data.dataset import Dataset, Shape, Split
from rdc.data.digits import read_digits
from rdc.data.folder import read_folder
from rdc.data.parquet import parquet_files, read_parquet

__all__ = ["Dataset", "Shape", "Split", "load"]


def load(
    source: str | Path, split: Split, *, shape: Shape | None = None, cache: Path | None = None
) -> Dataset:
    """A split of a data set; `source` says which:

    - "digits": scikit-learn's 1,797 handwritten digits of 8x8 pixels
    - the path of `cifar-10-python.tar.gz` or `cifar-100-python.tar.gz`, as published
    - a folder of images, `split/class/image.png`, whose classes take turns; validation may also be
      called val or valid
    - a folder of parquet files as Hugging Face has them, `train-00000-of-00001.parquet`, there or
      in its folder `data`

    Where a source has no validation split, a tenth of its training images, at most 5,000, is held
    out: "train" and "validation" are then disjoint, and the same in every run.

    `shape` (C, H, W) is for folders: their images are converted to C channels (1 or 3), and those
    of another size are resized until they cover H x W and cropped at their center. Without it all
    images must have one size. What a folder decodes to is kept in the folder `cache`, by default
    ~/.cache/rdc, under a hash of everything in the split, and mapped from there.
    """
    if split not in get_args(Split):
        raise ValueError(f"split={split!r} must be one of {get_args(Split)}")
    if shape is not None:
        _check_shape(shape)
    path = Path(source)
    if source == "digits":
        return _of_shape(read_digits(split), shape, source)
    if path.name in ARCHIVES:
        return _of_shape(read_cifar(path, split), shape, source)
    if not path.is_dir():
        raise ValueError(
            f"source={str(source)!r} is unknown; give 'digits', the path of one of "
            f"{sorted(ARCHIVES)}, or an existing folder of images (split/class/image.png) or "
            "parquet files"
        )
    encoded = read_parquet(path, split) if parquet_files(path) else read_folder(path, split)
    pixels = cached_pixels(encoded, shape, cache or Path.home() / ".cache" / "rdc")
    return Dataset(torch.from_numpy(pixels), encoded.labels, encoded.class_names)


def _check_shape(shape: Shape) -> None:
    if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
        raise ValueError(f"shape={shape} must be (C, H, W), with 1 or 3 channels and H, W >= 1")


def _of_shape(data: Dataset, shape: Shape | None, source: str | Path) -> Dataset:
    if shape not in (None, data.shape):
        raise ValueError(
            f"shape={shape}: the images of {source} are {data.shape}, and only folders are "
            f"resized; give shape={data.shape} or none"
        )
    return data
