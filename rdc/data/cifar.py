"""CIFAR-10 and CIFAR-100 from the archives of their authors, which hold pickles of Python 2.

An archive is read only when it is the published one, and its pickles can make arrays and plain
values only: nothing in it is executed, and nothing is written.
"""

import hashlib
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdc.choices import Split
from rdc.data.dataset import Dataset, hold_out, origin
from rdc.hub.safe_pickle import AllowListUnpickler

SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Archive:
    """Layout of a published archive: the members with images, and the keys inside them."""

    md5: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: bytes
    class_names: bytes


ARCHIVES = {
    "cifar-10-python.tar.gz": Archive(
        md5="c58f30108f718f92721af3b95e74349a",
        train=tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
        test=("cifar-10-batches-py/test_batch",),
        meta="cifar-10-batches-py/batches.meta",
        labels=b"labels",
        class_names=b"label_names",
    ),
    "cifar-100-python.tar.gz": Archive(
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        train=("cifar-100-python/train",),
        test=("cifar-100-python/test",),
        meta="cifar-100-python/meta",
        labels=b"fine_labels",
        class_names=b"fine_label_names",
    ),
}


def read_cifar(path: Path, split: Split) -> Dataset:
    """A split, with CIFAR-100's fine labels; validation is held out of the training images."""
    wanted, shared = origin(split, ["train", "test"], path, "")
    archive = ARCHIVES[path.name]
    batches = archive.test if wanted == "test" else archive.train
    members = _members(path, archive.md5, {*batches, archive.meta})
    try:
        names = [name.decode() for name in members[archive.meta][archive.class_names]]
        pixels = np.concatenate([members[batch][b"data"] for batch in batches])
        labels = np.concatenate([members[batch][archive.labels] for batch in batches])
        pixels = torch.from_numpy(pixels).view(-1, *SHAPE)
        data = Dataset(pixels, torch.from_numpy(labels), tuple(names))
    except Exception as error:
        raise ValueError(
            f"data: {path} does not hold what CIFAR's archives do: {error!r}; {_again(path)}"
        ) from error
    return data.subset(torch.from_numpy(hold_out(len(data), split))) if shared else data


def _members(path: Path, md5: str, wanted: Collection[str]) -> dict[str, Any]:
    """The unpickled members of the archive, which must have the checksum `md5`."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise FileNotFoundError(f"data: {path} does not exist; {_again(path)}") from None
    with file:
        found = hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
        if found != md5:
            raise ValueError(
                f"data: {path} has the MD5 checksum {found}, not the published {md5}: it is "
                f"damaged or another archive; {_again(path)}"
            )
        file.seek(0)
        try:
            # One pass: going back in a compressed archive would mean to start again.
            with tarfile.open(fileobj=file, mode="r|gz") as tar:
                return {m.name: _plain(tar, m) for m in tar if m.name in wanted}
        except Exception as error:
            raise ValueError(
                f"data: {path} is not a readable archive: {error}; {_again(path)}"
            ) from error


def _again(path: Path) -> str:
    return f"download it again from https://www.cs.toronto.edu/~kriz/{path.name}"


def _plain(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Any:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{member.name} is not a file")
    return AllowListUnpickler(BytesIO(file.read()), _ALLOWED, encoding="bytes").load()


def _dtype(code: Any, *flags: int) -> np.dtype:
    # Without the flags of Python 2, align=0 and copy=1, about which numpy 2.4.0 to 2.4.4 warn; and
    # always a copy, because what follows changes its state.
    return np.dtype(code, copy=True)


# All that the pickles need: numpy's own function that remakes an array, and its arguments.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
}
