"""The first 20 test images of CIFAR-10, which the wheel of foolbox holds as PNG files."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from rdc.choices import Split
from rdc.data.dataset import Dataset, origin
from rdc.image_files import read_image

CIFAR10_SAMPLES = "cifar10-samples"
CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


def read_samples(split: Split) -> Dataset:
    """The images in the order of the test set; foolbox is not imported.

    Raises:
        FileNotFoundError: foolbox is not installed, or another split than "test" is asked for.
    """
    other = "another source, such as the path of cifar-10-python.tar.gz"
    origin(split, ["test"], repr(CIFAR10_SAMPLES), other)
    found = find_spec("foolbox")
    folders = found.submodule_search_locations if found is not None else None
    files = sorted(file for each in folders or () for file in Path(each).glob("data/cifar10_*.png"))
    if not files:
        raise FileNotFoundError(
            f"data: {CIFAR10_SAMPLES!r} are files of the package foolbox, which is not installed "
            "here: pip install foolbox"
        )
    # cifar10_NUMBER_LABEL.png
    labels = [int(file.stem.split("_")[2]) for file in files]
    return Dataset.of(np.stack([np.asarray(read_image(f)) for f in files]), labels, CLASS_NAMES)
