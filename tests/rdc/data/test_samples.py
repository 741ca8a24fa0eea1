"""The images of CIFAR-10 in foolbox's wheel, read without foolbox."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdc.data import load
from tests.support.pictures import noise, save


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package foolbox with three images of CIFAR-10 beside others, that cannot be imported."""
    files = {name: noise(seed, 32, 32, 3) for seed, name in enumerate(
        ("cifar10_00_3", "cifar10_01_9", "cifar10_02_0", "cifar100_00_49", "mnist_00_7")
    )}  # fmt: skip
    save(tmp_path / "foolbox", {f"data/{name}.png": image for name, image in files.items()})
    save(tmp_path, {"foolbox/__init__.py": b"raise RuntimeError"})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "foolbox", raising=False)
    return tmp_path


def test_images_and_classes_are_those_of_the_files(wheel: Path) -> None:
    data = load("cifar10-samples", "test")
    assert (len(data), data.shape, data.peak) == (3, (3, 32, 32), 255)
    assert [data.class_names[label] for label in data.labels] == ["cat", "truck", "airplane"]
    with Image.open(wheel / "foolbox/data/cifar10_01_9.png") as image:
        assert np.array_equal(data.pixels[1].permute(1, 2, 0), np.asarray(image))


@pytest.mark.parametrize(
    ("split", "remedy"),
    [("train", "another source"), ("validation", "another source"), ("all", "--split test$")],
)
def test_there_are_test_images_only(wheel: Path, split, remedy: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"split, only \['test'\]; give {remedy}"):
        load("cifar10-samples", split)


def test_without_foolbox_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdc.data.samples.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"foolbox.* not installed here: pip install foolb"):
        load("cifar10-samples", "test")


@pytest.mark.skipif(find_spec("foolbox") is None, reason="foolbox is not installed")
def test_foolbox_holds_the_first_test_images_of_cifar_10() -> None:
    """Their labels are those with which CIFAR-10's test batch begins."""
    data = load("cifar10-samples", "test")
    assert data.labels.tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1, 0, 9, 5, 7, 9, 8, 5, 7, 8, 6]
    assert data.shape == (3, 32, 32)
