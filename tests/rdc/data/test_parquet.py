"""Parquet files of Hugging Face's layout are the same data set as the folder of their images."""

import json
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from rdc.choices import Split
from rdc.data import Dataset, load
from tests.support.pictures import noise, tree

CLASSES = ["cat", "dog"]
TRAIN = "train-00000-of-00001.parquet"


def png(seed: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(noise(seed)).save(buffer, "png")
    return buffer.getvalue()


def write(
    path: Path,
    seeds: Sequence[int],
    labels: list[Any],
    classes: list[str] | None = CLASSES,
    **columns: Any,
) -> None:
    """A file with images, labels and the class names that it declares; `columns` replace them."""
    images = [{"bytes": png(seed), "path": f"{seed}.png"} for seed in seeds]
    table = pyarrow.table(columns or {"image": images, "label": labels})
    features = {name: {"names": classes, "_type": "ClassLabel"} for name in table.column_names}
    if classes is not None:
        described = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": described})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=7)


def read(root: Path, split: Split = "train") -> Dataset:
    return load(root, split, cache=root / "cache")


@pytest.mark.parametrize("folder", [".", "data"])
def test_parquet_files_are_their_images(folder: str, tmp_path: Path) -> None:
    """All shards and row groups are read, and validation is held out as from a folder."""
    seeds = [seed for turn in range(20) for seed in (turn, 20 + turn)]  # as in the folder
    parts = [slice(0, 15), slice(15, 39), slice(39, 40)]
    for number, part in enumerate(parts):
        path = tmp_path / "files" / folder / f"train-{number:05d}-of-00003-0a1b2c.parquet"
        write(path, seeds[part], [seed // 20 for seed in seeds[part]])
    write(tmp_path / "files" / folder / "test.parquet", range(50, 52), [1, 0])
    tree(tmp_path / "folder", 20)
    for split in ("train", "validation"):
        images = sorted(tmp_path.glob("folder/train/*/*.png"))
        assert len(images) == 40
        data, same = read(tmp_path / "files", split), renumbered(tmp_path / "folder", split)
        assert torch.equal(data.pixels, same.pixels)
        assert torch.equal(data.labels, same.labels)
        assert data.class_names == ("cat", "dog")
    test = read(tmp_path / "files", "test")
    assert test.labels.tolist() == [1, 0]
    assert torch.equal(test.pixels[1], torch.from_numpy(noise(51)).permute(2, 0, 1))


def renumbered(root: Path, split: Split) -> Dataset:
    """The folder with names that sort as their numbers do."""
    for path in root.glob("train/*/?.png"):
        path.rename(path.with_name(f"0{path.name}"))
    return read(root, split)


def test_other_column_names(tmp_path: Path) -> None:
    images = [{"bytes": png(seed), "path": None} for seed in range(2)]
    columns = {"img": images, "fine_label": [1, 0], "coarse_label": [0, 0]}
    write(tmp_path / TRAIN, range(0), [], **columns)
    assert read(tmp_path).labels.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_validation_files(name: str, tmp_path: Path) -> None:
    write(tmp_path / TRAIN, range(12), [0, 1] * 6)
    write(tmp_path / f"{name}-00000-of-00001.parquet", range(3), [0, 1, 0])
    assert (len(read(tmp_path)), len(read(tmp_path, "validation"))) == (12, 3)


def test_images_are_fitted_to_the_shape(tmp_path: Path) -> None:
    write(tmp_path / TRAIN, range(3), [0, 1, 0])
    assert load(tmp_path, "train", shape=(1, 2, 2), resize=True, cache=tmp_path).shape == (1, 2, 2)


IMAGE = {"bytes": png(0), "path": None}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "negative": ({"image": [IMAGE] * 2, "label": [0, -1]}, r"the label -1, .* none of its 2 cl"),
    "high": ({"image": [IMAGE] * 2, "label": [2, 0]}, r"the label 2, .* are all labeled"),
    "missing": ({"image": [IMAGE] * 2, "label": [1, None]}, r"the label nan, .* all labeled"),
    "columns": (
        {"image": [IMAGE], "y": [0]},
        r"columns \['image', 'y'\]; one must be called \('la",
    ),
    "no images": ({"photo": [IMAGE], "label": [0]}, r"\['photo', 'label'\]; one must .*'img'\)"),
    "no rows": ({"image": [], "label": []}, r"train-00000.* has no rows; give files with images"),
    "external": (
        {"image": [IMAGE, {"bytes": None, "path": "a.png"}], "label": [0, 1]},
        r"^data: train-00000-of-00001\.parquet row 1 has no image; give files that contain",
    ),
    "null": ({"image": [IMAGE, None], "label": [0, 1]}, r"parquet row 1 has no image"),
    "urls": ({"image": ["http://a"], "label": [0]}, r"parquet row 0 has no image"),
    "broken": (
        {"image": [IMAGE, {"bytes": b"no", "path": None}], "label": [0, 1]},
        r"^data: train-00000-of-00001\.parquet row 1 is not a readable image",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str, tmp_path: Path) -> None:
    columns, message = WRONG[name]
    write(tmp_path / TRAIN, range(0), [], **columns)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_rows_are_counted_in_their_file(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", range(70), [0] * 70)
    images = [IMAGE] * 66 + [None]
    write(tmp_path / "train-00001-of-00002.parquet", range(0), [], image=images, label=[0] * 67)
    with pytest.raises(ValueError, match=r"^data: train-00001-of-00002\.parquet row 66 has no"):
        load(tmp_path, "train", shape=(3, 6, 4), cache=tmp_path / "cache")


def test_files_must_name_their_classes(tmp_path: Path) -> None:
    write(tmp_path / TRAIN, range(2), [0, 1], classes=None)
    with pytest.raises(ValueError, match=r"does not say what its classes .* 'label' being a Class"):
        read(tmp_path)


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    write(tmp_path / TRAIN, range(2), [0, 1])
    write(tmp_path / "test.parquet", range(2), [0, 1], ["dog", "cat"])
    with pytest.raises(ValueError, match=r"test and train have the same classes in another order"):
        read(tmp_path)


def test_missing_files_are_noticed(tmp_path: Path) -> None:
    write(tmp_path / "train-00001-of-00003.parquet", range(2), [0, 1])
    with pytest.raises(FileNotFoundError, match=r"is one of 3 files, but .* has 1 of that split"):
        read(tmp_path)


def test_missing_splits_are_named(tmp_path: Path) -> None:
    write(tmp_path / TRAIN, range(2), [0, 1])
    write(tmp_path / "extra-00000-of-00001.parquet", range(2), [0, 1])
    with pytest.raises(
        FileNotFoundError, match=r"no 'test' split, only \['train'\]; .* test-00000"
    ):
        read(tmp_path, "test")


@pytest.mark.parametrize("content", [b"", b"no parquet", None])
def test_broken_files_are_named(content: bytes | None, tmp_path: Path) -> None:
    write(tmp_path / TRAIN, range(9), [0] * 9)
    whole = (tmp_path / TRAIN).read_bytes()
    (tmp_path / TRAIN).write_bytes(whole[:-50] if content is None else content)
    with pytest.raises(ValueError, match=rf"^data: .*{TRAIN} is not a readable parquet file: "):
        read(tmp_path)


def test_broken_pages_are_named(tmp_path: Path) -> None:
    """The footer is whole, so that only reading the images finds it out."""
    write(tmp_path / TRAIN, range(9), [0] * 9)
    content = bytearray((tmp_path / TRAIN).read_bytes())
    content[4:400] = b"\xff" * 396
    (tmp_path / TRAIN).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^data: .*{TRAIN} is not a readable parquet file: "):
        read(tmp_path)


def test_without_pyarrow_it_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / TRAIN).touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install pyarrow"):
        read(tmp_path)
