"""A data set is bytes with a meaning; its splits never overlap and never change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdc.choices import Split
from rdc.data import Dataset, load
from rdc.data.dataset import hold_out, origin, same_classes
from rdc.runs.fingerprints import data_fingerprint
from tests.support.pictures import tree

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def bytes_of(*shape: int, peak: int = 255) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, peak + 1, shape, generator=generator).byte()
    return Dataset(pixels, torch.arange(shape[0]) % 2, ("cat", "dog"), peak)


@pytest.mark.parametrize("peak", [1, 16, 255])
def test_images_are_in_the_unit_interval(peak: int) -> None:
    data = bytes_of(20, 3, 4, 6, peak=peak)
    assert (len(data), data.shape) == (20, (3, 4, 6))
    assert data.images.dtype == torch.float32
    assert (data.images.min(), data.images.max()) == (0, 1)
    assert torch.equal(data.images, data.pixels / torch.tensor(float(peak)))


@pytest.mark.parametrize("rows", [slice(2, 5), torch.tensor([4, 0, 4])])
def test_a_subset_keeps_the_meaning(rows: Any) -> None:
    data = bytes_of(6, 1, 2, 3, peak=16)
    part = data.subset(rows)
    assert torch.equal(part.images, data.images[rows])
    assert torch.equal(part.labels, data.labels[rows])
    assert (part.class_names, part.peak) == (data.class_names, 16)


BAD = {
    "floats": ({"pixels": torch.zeros(4, 1, 2, 3)}, r"^pixels: torch\.float32 .* give uint8"),
    "axes": ({"pixels": torch.zeros(4, 2, 3).byte()}, r"^pixels: .* \(4, 2, 3\); give uint8"),
    "int32": ({"labels": torch.zeros(4).int()}, r"^labels: torch\.int32 .*; give int64 \(4,\)"),
    "count": ({"labels": torch.zeros(3).long()}, r"^labels: .*\(3,\); give int64 \(4,\), one"),
    "high": ({"labels": torch.tensor([0, 1, 2, 0])}, r"^labels: from 0 to 2; .* the 2 class_names"),
    "low": ({"labels": torch.tensor([0, -1, 1, 0])}, r"^labels: from -1 to 1; .*, from 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_data_set_is_refused(name: str) -> None:
    fields, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        replace(bytes_of(4, 1, 2, 3), **fields)


def test_digits_are_scikit_learns_to_the_bit() -> None:
    """The floats are those on which the packaged models were trained, before pixels were bytes."""
    from sklearn.datasets import load_digits  # takes seconds to import

    pixels, targets = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    parts = order.split([500, 200, 1097])
    for split, rows in zip(("test", "validation", "train"), parts, strict=True):
        data = load("digits", split)
        assert torch.equal(data.images, images[rows])
        assert torch.equal(data.labels, torch.from_numpy(targets).long()[rows])


def test_digits_have_one_shape() -> None:
    assert load("digits", "test", shape=(1, 8, 8)).shape == (1, 8, 8)
    with pytest.raises(ValueError, match=r"^shape=\(3, 8, 8\): the images of digits are \(1, 8, 8"):
        load("digits", "test", shape=(3, 8, 8))


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 0, 8), (3, 8), (3, 8, 8, 8)])
def test_bad_shapes_are_refused(shape: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^shape=\(.* must be \(C, H, W\), with 1 or 3 channels"):
        load(tree(tmp_path, 1), "train", shape=shape)


def test_unknown_sources_are_told_what_there_is(tmp_path: Path) -> None:
    for source in ("letters", tmp_path / "missing"):
        with pytest.raises(ValueError, match=r"^data='.*' is unknown; give 'digits', .*cifar-10-"):
            load(source, "train")


def test_unknown_splits_are_told_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"^split='holdout' must be one of \('train', 'valid"):
        load("digits", "holdout")  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(st.integers(10, 3_000))
def test_the_hold_out_is_a_partition_and_stable(rows: int) -> None:
    train, validation = hold_out(rows, "train").tolist(), hold_out(rows, "validation").tolist()
    assert sorted(train + validation) == list(range(rows))
    assert len(validation) == rows // 10
    assert (train, validation) == (sorted(train), sorted(validation))
    assert hold_out(rows, "validation").tolist() == validation


def test_the_hold_out_never_changes() -> None:
    """Models that were trained on train must not meet their own images in validation later."""
    assert hold_out(40, "validation").tolist() == [4, 20, 22, 25]
    assert len(hold_out(50_000, "validation")) == len(hold_out(200_000, "validation")) == 5_000


def test_too_few_images_to_hold_any_out() -> None:
    assert hold_out(9, "train").tolist() == list(range(9))
    with pytest.raises(ValueError, match=r"^data: 9 training images are too few .* give a valid"):
        hold_out(9, "validation")


def test_what_a_split_is_made_of() -> None:
    found = [origin(split, SPLITS, "here", "") for split in SPLITS]
    assert found == [(split, False) for split in SPLITS]
    shared = [origin(split, ["test", "train"], "here", "") for split in SPLITS]
    assert shared == [("train", True), ("train", True), ("test", False)]
    assert origin("all", ["all", "test"], "here", "") == ("all", False)


ADVICE = {
    ("test", "train"): r"no 'test' split, only \['train'\]; give test/a$",
    ("validation", "test"): r"no 'train' split, only \['test'\]; give train/a$",
    ("all", "train"): r"no 'all' split, only \['train'\]; give --split train$",
    ("test", "all"): r"no 'test' split, only \['all'\]; give test/a, or --split all$",
    ("train", "all"): r"no 'train' split, only \['all'\]; give train/a$",
}


@pytest.mark.parametrize("case", ADVICE)
def test_what_to_give_in_place_of_a_missing_split(case) -> None:
    split, available = case
    with pytest.raises(FileNotFoundError, match=f"^data: here has {ADVICE[case]}"):
        origin(split, [available], "here", "{0}/a")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_programs_that_train_are_not_told_of_a_flag(split, tmp_path: Path) -> None:
    """They have no --split, and a source without splits needs a training split."""
    tree(tmp_path, 1, ("folder",))
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=[0, 1])
    forms = {"folder": "train/class/images", "a.npz": "a .npz with the arrays train_images and tr"}
    for name, form in forms.items():
        with pytest.raises(FileNotFoundError, match=f"give {form}") as error:
            load(tmp_path / name, split)
        assert "--split" not in str(error.value)


def test_classes_are_those_of_all_splits() -> None:
    assert same_classes({"train": ("a", "b"), "test": ("a", "b")}, "here") == ("a", "b")
    message = r"^data: here: classes differ: only in train: \['b'\], only in test: \['c', 'd'\]; "
    with pytest.raises(ValueError, match=message):
        same_classes({"train": ("a", "b"), "test": ("a", "c", "d")}, "here")
    with pytest.raises(ValueError, match=r"train and test have the same classes in another order"):
        same_classes({"train": ("a", "b"), "test": ("b", "a")}, "here")


def test_the_fingerprint_tells_data_sets_apart() -> None:
    data = bytes_of(2_000, 1, 2, 3)
    pixels = data.pixels.clone()
    pixels[1_999, 0, 1, 2] += 1
    others = [
        replace(data, pixels=pixels),
        replace(data, pixels=data.pixels.reshape(-1, 1, 3, 2)),
        replace(data, labels=1 - data.labels),
        replace(data, class_names=("cat", "wolf")),
        replace(data, peak=254),
        data.subset(slice(1_999)),
        data.subset(slice(0)),
    ]
    assert len({data_fingerprint(each) for each in [data, *others]}) == 8


def test_the_fingerprint_depends_on_values_only() -> None:
    data = bytes_of(10, 3, 4, 6)
    swapped = data.pixels.transpose(2, 3).contiguous().transpose(2, 3)
    assert data_fingerprint(replace(data, pixels=swapped)) == data_fingerprint(data)
    every = data.subset(torch.arange(10))
    assert (
        data_fingerprint(data.subset(slice(None)))
        == data_fingerprint(every)
        == data_fingerprint(data)
    )
