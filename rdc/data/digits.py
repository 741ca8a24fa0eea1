"""scikit-learn's 1,797 handwritten digits of 8x8 pixels, whose white is 16."""

import numpy as np
import torch

from rdc.choices import Split
from rdc.data.dataset import Dataset


def read_digits(split: Split) -> Dataset:
    """A split of 500 test, 200 validation and 1,097 training images, always the same."""
    # scikit-learn takes a second to import; only this needs it.
    from sklearn.datasets import load_digits

    values, targets = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.asarray(values).astype(np.uint8)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(np.asarray(targets)).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    test, validation, train = order.split([500, 200, len(order) - 700])
    rows = {"train": train, "validation": validation, "test": test, "all": order}[split]
    names = tuple(str(digit) for digit in range(10))
    return Dataset(pixels[rows], labels[rows], names, peak=16)
