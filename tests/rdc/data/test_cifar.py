"""CIFAR's archives are read as published, and whatever else they hold is refused unexecuted."""

import pickle
import struct
import tarfile
import warnings
from dataclasses import replace
from hashlib import md5
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdc.data import load
from rdc.data.cifar import ARCHIVES, _dtype
from tests.support.pictures import noise

TEN, HUNDRED = "cifar-10-python.tar.gz", "cifar-100-python.tar.gz"


def python2(value: Any) -> bytes:
    """The opcodes of a value as Python 2 and its numpy wrote them, with protocol 2."""
    if value is None or isinstance(value, bool):
        return {None: b"N", False: b"\x89", True: b"\x88"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(python2, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(map(python2, (x for pair in value.items() for x in pair))) + b"u"
    kind = value.dtype.str.encode()
    state = (3, kind[:1], None, None, None, -1, -1, 0)
    dtype = b"cnumpy\ndtype\n" + python2((kind[1:], 0, 1)) + b"R" + python2(state) + b"b"
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + python2((0,))
        + python2(b"b") + b"tR(" + python2(1) + python2(value.shape) + dtype + python2(False)
        + python2(value.tobytes()) + b"tb"
    )  # fmt: skip


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + python2(value) + b"."


def batch(seed: int, **changes: Any) -> dict[bytes, Any]:
    """Four images, one of them of every other class."""
    return {
        b"batch_label": b"training batch %d of 5" % seed,
        b"labels": [seed, 1, 9, 3],
        b"data": noise(seed, 4, 3072),
        b"filenames": [b"a.png"] * 4,
    } | {name.encode(): value for name, value in changes.items()}


NAMES = [b"name %d" % number for number in range(10)]
MEMBERS: dict[str, bytes] = {
    "cifar-10-batches-py/readme.html": b"<html>",
    "cifar-10-batches-py/batches.meta": pickled({b"label_names": NAMES, b"num_vis": 3072}),
    **{f"cifar-10-batches-py/data_batch_{n}": pickled(batch(n)) for n in range(1, 6)},
    "cifar-10-batches-py/test_batch": pickled(batch(0)),
}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an archive of some members, which then counts as the published one."""

    def make(members: dict[str, bytes], name: str = TEN, kept: int | None = None) -> Path:
        path = tmp_path / name
        with tarfile.open(path, "w:gz") as tar:
            folder = tarfile.TarInfo(name.removesuffix("on.tar.gz"))
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
        path.write_bytes(path.read_bytes()[:kept])
        known = md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(ARCHIVES, name, replace(ARCHIVES[name], md5=known))
        return path

    return make


def test_the_tests_write_what_python_2_did() -> None:
    """Python itself reads it so, in the way of CIFAR's own page."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = pickle.loads(MEMBERS["cifar-10-batches-py/data_batch_1"], encoding="bytes")
    assert np.array_equal(read.pop(b"data"), noise(1, 4, 3072))
    assert read == {key: value for key, value in batch(1).items() if key != b"data"}


def test_cifar_10(archive: Any, tmp_path: Path) -> None:
    path = archive(MEMBERS)
    test = load(path, "test")
    assert torch.equal(test.pixels, torch.from_numpy(noise(0, 4, 3, 32, 32)))
    assert (test.labels.tolist(), test.peak) == ([0, 1, 9, 3], 255)
    assert test.class_names == tuple(f"name {number}" for number in range(10))
    train, validation = load(str(path), "train"), load(path, "validation", shape=(3, 32, 32))
    assert (len(train), len(validation)) == (18, 2)
    found = {
        (image.tobytes(), int(label))
        for data in (train, validation)
        for image, label in zip(data.pixels.numpy(), data.labels, strict=True)
    }
    images = [image.tobytes() for seed in range(1, 6) for image in noise(seed, 4, 3072)]
    labels = [label for seed in range(1, 6) for label in (seed, 1, 9, 3)]
    assert found == set(zip(images, labels, strict=True))
    with pytest.raises(FileNotFoundError, match=r"has no 'all' split, .* give --split test$"):
        load(path, "all")
    assert list(tmp_path.iterdir()) == [path]


def test_cifar_100_has_its_fine_labels(archive: Any) -> None:
    coarse_and_fine = batch(1) | {b"coarse_labels": [0] * 4, b"fine_labels": [99, 1, 2, 3]}
    names = {b"fine_label_names": [b"f%d" % n for n in range(100)], b"coarse_label_names": [b"c"]}
    members = {"train": batch(2), "test": coarse_and_fine, "meta": names}
    content = {f"cifar-100-python/{name}": pickled(value) for name, value in members.items()}
    data = load(archive(content, HUNDRED), "test")
    assert data.labels.tolist() == [99, 1, 2, 3]
    assert (data.class_names[99], len(data.class_names)) == ("f99", 100)


def test_cifar_has_one_shape(archive: Any) -> None:
    with pytest.raises(ValueError, match=r"^shape=\(1, 32, 32\): .* are \(3, 32, 32\); give shape"):
        load(archive(MEMBERS), "test", shape=(1, 32, 32))


def test_other_archives_are_refused(tmp_path: Path) -> None:
    """The checksum is that of the authors' page unless a test replaces it."""
    (tmp_path / TEN).write_bytes(b"another")
    message = (
        r"checksum b32d73e5.*, not the published c58f3010.* https://www\.cs\.toronto.*cifar-10-p"
    )
    with pytest.raises(ValueError, match=message):
        load(tmp_path / TEN, "train")
    assert ARCHIVES[HUNDRED].md5 == "eb9058c3a382ffc7106e4002c42a8d85"


def test_missing_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"100-python\.tar\.gz does not exist; download it"):
        load(tmp_path / HUNDRED, "train")


@pytest.mark.parametrize("kept", [0, 5, 100, 10_000])
def test_truncated_archives_are_refused(kept: int, archive: Any) -> None:
    with pytest.raises(ValueError, match=r"^data: .* is not a readable archive: .*; download it"):
        load(archive(MEMBERS, kept=kept), "train")


TOUCH = b"open('executed', 'w').close()"
MALICIOUS = {
    "os.system": b"cos\nsystem\n(S'touch executed'\ntR.",
    "posix.system": b"(S'touch executed'\niposix\nsystem\n.",
    "__builtin__.eval": b'c__builtin__\neval\n(S"' + TOUCH + b'"\ntR.',
    "builtins.exec": b'\x80\x04\x8c\x08builtins\x94\x8c\x04exec\x93(S"' + TOUCH + b'"\ntR.',
    "numpy.ndarray.tofile": b"\x80\x04\x8c\x05numpy\x94\x8c\x0endarray.tofile\x93.",
    "numpy.load": b"cnumpy\nload\n(S'x.npy'\nNI01\ntR.",
    "subprocess.Popen": b"\x80\x02csubprocess\nPopen\n(](S'touch'\nS'executed'\net\x81.",
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_pickles_execute_nothing(
    name: str, archive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = archive(MEMBERS | {"cifar-10-batches-py/batches.meta": MALICIOUS[name]})
    with pytest.raises(ValueError, match=rf"asks for {name}, which is not allowed; download it"):
        load(path, "test")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["os.system", "posix.system", "__builtin__.eval"])
def test_the_malicious_pickles_are_real(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the test above would pass for nothing."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(MALICIOUS[name])
    assert (tmp_path / "executed").exists()


def test_pickles_cannot_change_numpys_own_types() -> None:
    for flags in [(), (0, 1), (0, 0), (False, False)]:
        made = _dtype(b"u1", *flags)
        assert made == np.uint8
        assert made is not np.dtype("u1")


WRONG = {
    "member": ({"data_batch_3": None}, r"KeyError\('cifar-10-batches-py/data_batch_3'\)"),
    "key": ({"data_batch_3": {b"data": noise(0, 4, 3072)}}, r"KeyError\(b'labels'\)"),
    "size": ({"data_batch_3": batch(3, data=noise(3, 4, 3071))}, r"3071"),
    "kind": ({"data_batch_3": batch(3, data=np.zeros((4, 3072)))}, r"pixels: torch\.float64"),
    "count": ({"data_batch_3": batch(3, labels=[1, 2])}, r"labels: .*\(18,\); give int64 \(20,\)"),
    "label": ({"data_batch_3": batch(3, labels=[1, 2, 3, 10])}, r"labels: from 1 to 10"),
    "not a dict": ({"batches.meta": [1, 2]}, r"TypeError"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_contents_are_refused(name: str, archive: Any) -> None:
    changes, message = WRONG[name]
    members = dict(MEMBERS)
    for member, value in changes.items():
        del members[f"cifar-10-batches-py/{member}"]
        if value is not None:
            members[f"cifar-10-batches-py/{member}"] = pickled(value)
    with pytest.raises(ValueError, match=rf"does not hold what CIFAR's archives do: .*{message}"):
        load(archive(members), "train")


def test_folders_in_place_of_batches_are_refused(archive: Any, tmp_path: Path) -> None:
    path = archive({})
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    ARCHIVES[TEN] = replace(ARCHIVES[TEN], md5=md5(path.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=r"not a readable archive: .*test_batch is not a file"):
        load(path, "test")
