"""Arrays are data sets; what is no array of images and labels is refused, and nothing unpickled."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdc.data import Dataset, load

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 5, 4, 3), dtype=np.uint8)
LABELS = np.arange(20) % 3


def expected() -> torch.Tensor:
    return torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())


FORMS = {
    "NHWC": PIXELS,
    "NCHW": PIXELS.transpose(0, 3, 1, 2),
    "floats": PIXELS / 255,
    "float32": PIXELS.astype(np.float32) / 255,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], LABELS.astype(np.uint8)])
def test_arrays_of_every_form(tmp_path: Path, form: str, labels: np.ndarray) -> None:
    np.savez(tmp_path / "data.npz", images=FORMS[form], labels=labels)
    np.save(tmp_path / "data.npy", FORMS[form])
    np.save(tmp_path / "labels.npy", labels)
    for file in ("data.npz", "data.npy"):
        data = load(tmp_path / file, "all")
        assert data.labels.tolist() == LABELS.tolist() and data.class_names == ("0", "1", "2")
        torch.testing.assert_close(data.images, expected() / 255)
        assert data.images.is_contiguous()
        assert data.pixels.dtype == (torch.uint8 if form.startswith("N") else torch.float32)


@pytest.mark.parametrize("names", [("train_images", "train_labels"), ("x_train", "y_train")])
def test_splits_of_a_npz(tmp_path: Path, names: tuple[str, str]) -> None:
    """Validation is held out where there is none, as of every source."""
    images, labels = names
    other = {name.replace("train", "test"): 1 for name in names}
    arrays: dict[str, Any] = {images: PIXELS, labels: LABELS}
    arrays |= dict(zip(other, (PIXELS[:2], LABELS[:2]), strict=True))
    np.savez(tmp_path / "data.npz", **arrays)
    parts = {split: load(tmp_path / "data.npz", split) for split in ("train", "validation", "test")}
    assert [len(part) for part in parts.values()] == [18, 2, 2]
    together = torch.cat([parts["train"].pixels, parts["validation"].pixels])
    assert sorted(together.flatten(1).tolist()) == sorted(expected().flatten(1).tolist())
    with pytest.raises(
        FileNotFoundError, match=r"has no 'all' split, only \['test', 'train'\]; give"
    ):
        load(tmp_path / "data.npz", "all")


def test_class_names_come_along(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=PIXELS, labels=LABELS, class_names=["a", "b", "é"])
    assert load(tmp_path / "data.npz", "all").class_names == ("a", "b", "é")


def test_numbers_of_classes_are_those_of_all_splits(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "train_images": PIXELS, "train_labels": LABELS,
        "val_images": PIXELS[:4], "val_labels": np.arange(4),
        "test_images": PIXELS[:2], "test_labels": LABELS[:2],
    }  # fmt: skip
    np.savez(tmp_path / "data.npz", **arrays)
    for split in ("train", "validation", "test"):
        assert load(tmp_path / "data.npz", split).class_names == ("0", "1", "2", "3")
    arrays["test_labels"] = LABELS[:2] / 2
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=r"^data: .*bad\.npz: test_labels: torch\.float64 of sh"):
        load(tmp_path / "bad.npz", "train")


def test_resizing_is_asked_for_and_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=PIXELS, labels=LABELS)
    with pytest.raises(
        ValueError, match=r"^shape=\(1, 8, 8\): the images of .* are \(3, 5, 4\); .*"
    ):
        load(tmp_path / "data.npz", "all", shape=(1, 8, 8))
    data = load(tmp_path / "data.npz", "all", shape=(1, 8, 8), resize=True)
    assert data.shape == (1, 8, 8) and 0 <= data.images.min() <= data.images.max() <= 1
    assert data.notes[0].startswith("images (3x5x4) of another shape were converted to 1x8x8")


class Trap:
    """Would say so if it were unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("unpickled",))


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"images": PIXELS}, r"has the arrays \['images'\]; give images and labels"),
    "too few labels": ({"images": PIXELS, "labels": LABELS[1:]},
        r"labels: .* of shape \(19,\); give"),
    "label >= K": ({"images": PIXELS, "labels": LABELS, "class_names": ["a", "b"]},
                   r"labels: from 0 to 2; give numbers of the 2 class_names"),
    "not classes": ({"images": PIXELS, "labels": LABELS + 10**12},
                    r"labels: up to 10{11}2; give class numbers below 100000"),
    "negative": ({"images": PIXELS, "labels": LABELS - 1}, r"labels: from -1 to 1; give numbers"),
    "float labels": ({"images": PIXELS, "labels": LABELS / 2}, r"labels: torch.float64 of shape"),
    "one-hot": ({"images": PIXELS, "labels": np.eye(3)[LABELS]},
        r"labels: .*\(20, 3\); give whole"),
    "0..255 floats": ({"images": PIXELS * 1.0, "labels": LABELS},
        r"from 0 to 255, expected \[0, 1"),
    "NaN": ({"images": PIXELS * np.nan, "labels": LABELS}, r"NaN or infinity in the pixels"),
    "integers": ({"images": PIXELS.astype(int), "labels": LABELS},
        r"images: torch.int64; give uint8"),
    "one image": ({"images": PIXELS[0, 0], "labels": LABELS},
        r"images: shape \(4, 3\); give \(N, C"),
    "channels": ({"images": PIXELS[..., :2], "labels": LABELS},
        r"images: shape .* 1 or 3 channels"),
    "empty": ({"images": PIXELS[:0], "labels": LABELS[:0]}, r"labels: .* of shape \(0,\); give"),
    "objects": ({"images": np.array([Trap()]), "labels": LABELS},
        r"images is not a readable array"),
    "text": ({"images": np.array(["a"]), "labels": LABELS}, r": can't convert np.ndarray of"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named(tmp_path: Path, name: str) -> None:
    arrays, message = BAD[name]
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=rf"^data: .*data\.npz.*{message}"):
        load(tmp_path / "data.npz", "all")


def test_files_are_what_they_are_called(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS)
    np.save(tmp_path / "b.npy", PIXELS)
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    (tmp_path / "b.npy").rename(tmp_path / "b.npz")
    for file, kind in (("a.npy", "npz"), ("b.npz", "npy")):
        with pytest.raises(
            ValueError, match=rf"{file} is a \.{kind} file by its content; rename it"
        ):
            load(tmp_path / file, "all")


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"nothing"])
def test_broken_files_are_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"data{suffix}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"data\{suffix} is not a complete \{suffix} file"):
        load(file, "all")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=rf"data\{suffix} does not exist"):
        load(file, "all")


def test_data_sets_of_arrays_and_tensors() -> None:
    read_only = PIXELS.view()
    read_only.setflags(write=False)
    for images in (read_only, torch.from_numpy(PIXELS), PIXELS[:, ::-1][:, ::-1]):
        data = Dataset.of(images, LABELS.tolist(), ["a", "b", "c"])
        assert torch.equal(data.pixels, expected()) and data.class_names == ("a", "b", "c")


# --- class names ---


def named(*names: str) -> Dataset:
    return Dataset.of(PIXELS, LABELS, names)


def test_classes_are_matched_by_name() -> None:
    data = named("cat", "dog", "emu").of_classes(("emu", "cat", "dog"))
    assert data.labels[:3].tolist() == [1, 2, 0]
    assert data.class_names == ("emu", "cat", "dog")
    assert data.notes == (
        "labels reordered from ['cat', 'dog', 'emu'] to ['emu', 'cat', 'dog']",
    )  # fmt: skip
    same = named("cat", "dog", "emu")
    assert same.of_classes(("cat", "dog", "emu")) is same


def test_one_text_is_no_list_of_class_names() -> None:
    with pytest.raises(ValueError, match="class_names='abc': one text; give a tuple"):
        Dataset.of(PIXELS, LABELS, "abc")


def test_numbers_match_names_of_their_count() -> None:
    for mine, theirs in ((("0", "1", "2"), ("a", "b", "c")), (("a", "b", "c"), ())):
        assert named(*mine).of_classes(theirs).labels.tolist() == LABELS.tolist()
    with pytest.raises(ValueError, match=r"data: 3 classes, but the model has 4; give data or a"):
        named("0", "1", "2").of_classes(("a", "b", "c", "d"))


def test_numbers_in_another_order_are_matched_by_name() -> None:
    """Folders sort their classes as text: 0, 1, 10, 2."""
    folders, numbers = ("0", "1", "10", *"23456789"), tuple(map(str, range(11)))
    data = Dataset.of(PIXELS[:11], range(11), folders).of_classes(numbers)
    assert [numbers[label] for label in data.labels] == list(folders)
    assert data.of_classes(folders).labels.tolist() == list(range(11))


def test_other_classes_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"only in the data \['emu'\], only in the model \['fox'\]"
    ):
        named("cat", "dog", "emu").of_classes(("cat", "dog", "fox"))
