"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships; white is 16.

They are the test part of UCI's "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, CC BY 4.0), in scikit-learn's order.
"""

from pathlib import Path

import numpy as np
import torch

from rdc.data.dataset import Dataset, Split


def read_digits(split: Split) -> Dataset:
    """A split of 500 test, 200 validation and 1,097 training images, always the same."""
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        pixels, labels = (torch.from_numpy(file[name]) for name in ("pixels", "labels"))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, validation, train = order.split([500, 200, len(order) - 700])
    rows = {"train": train, "validation": validation, "test": test, "all": order}[split]
    names = tuple(str(digit) for digit in range(10))
    return Dataset(pixels[rows], labels[rows].long(), names, peak=16)
