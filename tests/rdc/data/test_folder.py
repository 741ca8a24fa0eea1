"""Image folders give the pixels that their files have, in an order that does not change."""

import os
import re
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdc.choices import Split
from rdc.data import Dataset, Shape, load
from tests.support.pictures import Content, noise, save, tree


def read(
    root: Path, split: Split = "train", shape: Shape | None = None, *, resize: bool = False
) -> Dataset:
    return load(root, split, shape=shape, resize=resize, cache=root.parent / "cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def test_classes_take_turns_in_the_order_of_names(root: Path) -> None:
    names = ["train/dog/b.png", "train/cat/z.PNG", "train/dog/deep/a.bmp", "train/cat/a.tiff"]
    save(root, {name: noise(seed) for seed, name in enumerate(names)})
    save(root, {"train/cat/notes.txt": b"", "train/.ipynb_checkpoints/c.png": b""})
    data = read(root)
    assert (data.class_names, data.labels.tolist()) == (("cat", "dog"), [0, 1, 0, 1])
    expected = np.stack([noise(seed) for seed in (3, 0, 1, 2)])
    assert torch.equal(data.pixels, torch.from_numpy(expected).permute(0, 3, 1, 2))
    assert (data.peak, data.shape) == (255, (3, 6, 4))


def test_a_beginning_has_all_classes_as_long_as_they_last(root: Path) -> None:
    """Programs take the first images of a split, and all of one class would mislead them."""
    save(root, {f"train/cat/{i}.png": noise(i) for i in range(2)})
    save(root, {f"train/dog/{i}.png": noise(i) for i in range(5)})
    assert read(root).labels.tolist() == [0, 1, 0, 1, 1, 1, 1]


def test_gray_folders_have_one_channel(root: Path) -> None:
    save(root, {"test/a/0.png": noise(0, 6, 4), "test/a/1.png": noise(1, 6, 4)})
    pixels = read(root, "test").pixels
    expected = torch.from_numpy(np.stack([noise(0, 6, 4), noise(1, 6, 4)]))[:, None]
    assert torch.equal(pixels, expected)
    assert torch.equal(read(root, "test", (3, 6, 4)).pixels, expected.expand(-1, 3, -1, -1))


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_validation_has_three_names(name: str, root: Path) -> None:
    tree(root, 5, ("train", name))
    assert (len(read(root)), len(read(root, "validation"))) == (10, 10)
    assert not torch.equal(read(root).pixels, read(root, "validation").pixels)


def test_two_validation_folders_are_refused(root: Path) -> None:
    tree(root, 1, ("train", "validation", "val"))
    with pytest.raises(ValueError, match=r"data has validation and val, .* mean validation; keep"):
        read(root)


def test_validation_is_held_out_of_train(root: Path) -> None:
    """All images are different, and each is in one of the two."""
    tree(root, 20, ("train", "test"))
    train, validation = read(root), read(root, "validation")
    assert (len(train), len(validation), len(read(root, "test"))) == (36, 4, 40)
    together = torch.cat([train.pixels, validation.pixels])
    expected = np.stack([noise(seed) for seed in range(40)])
    assert {image.tobytes() for image in together.permute(0, 2, 3, 1).numpy()} == {
        image.tobytes() for image in expected
    }
    labels = torch.cat([train.labels, validation.labels])
    assert labels.bincount().tolist() == [20, 20]
    cats = {noise(seed).transpose(2, 0, 1).tobytes() for seed in range(20)}
    assert [image.tobytes() in cats for image in together.numpy()] == (labels == 0).tolist()


WRONG: dict[str, tuple[dict[str, Content], Split, str]] = {
    "no split": (
        {"cat/0.png": noise(0)},
        "train",
        r"data has no 'train' split, only \['all'\]; give train/class/images$",
    ),
    "no test": ({"train/cat/0.png": noise(0)}, "test", r"no 'test' split, only \['train'\]"),
    "no train": ({"test/cat/0.png": noise(0)}, "validation", r"no 'train' split, only \['test'\]"),
    "no class": ({"train/0.png": noise(0)}, "train", r"train has no folder of a class; give .*/cl"),
    "empty": ({"train/cat/notes.txt": b""}, "train", r"no image below the folder .*train/cat"),
    "classes": (
        {"train/cat/0.png": noise(0), "test/cat/0.png": noise(0), "test/dog/0.png": noise(0)},
        "train",
        r"data: classes differ: only in train: \[\], only in test: \['dog'\]; give every split",
    ),
    "broken": (
        {"train/cat/0.png": b"no"},
        "train",
        r"0\.png is not a readable image: of no known format; r",
    ),
    "cut": (
        {"train/cat/0.png": noise(0), "train/cat/1.gif": b"GIF89a"},
        "train",
        r"^data: train/cat/1\.gif is not a readable image: .*; replace or remove it",
    ),
    "size": (
        {"train/cat/0.png": noise(0), "train/cat/1.png": noise(0, 4, 6, 3)},
        "train",
        r"^data: train/cat/0\.png is \(3, 6, 4\) .*cat/1\.png is \(3, 4, 6\); .*shape=\(C",
    ),
    "color": (
        {"train/cat/0.png": noise(0, 6, 4), "train/dog/0.png": noise(0)},
        "train",
        r"cat/0\.png is \(1, 6, 4\) .*, but train/dog/0\.png is \(3, 6, 4\); give the shape",
    ),
    "range": (
        {"train/cat/0.tiff": Image.new("F", (4, 6))},
        "train",
        r"^data: train/cat/0\.tiff: .* mode 'F'.* scale it to 0\.\.255",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str, root: Path) -> None:
    files, split, message = WRONG[name]
    save(root, files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(root, split)


def test_a_gray_image_among_colored_ones_is_colored(root: Path) -> None:
    save(root, {"train/cat/0.png": noise(0), "train/cat/1.png": noise(1, 6, 4)})
    assert torch.equal(read(root).pixels[1], torch.from_numpy(noise(1, 6, 4)).expand(3, -1, -1))


def test_unreadable_files_are_named(root: Path) -> None:
    tree(root, 1)
    (root / "train" / "cat" / "1.png").symlink_to(root / "nowhere")
    with pytest.raises(ValueError, match=r"^data: .*1\.png cannot be read: No such file"):
        read(root)
    (root / "train" / "cat" / "1.png").unlink()
    os.mkfifo(root / "train" / "cat" / "1.png")
    with pytest.raises(ValueError, match=r"^data: .*1\.png cannot be read: not a regular file"):
        read(root)


def test_hidden_files_are_no_images_and_linked_folders_are(root: Path) -> None:
    """macOS leaves ._name.png beside name.png on foreign disks; its content is no image."""
    tree(root, 1)
    save(root, {"train/cat/._0.png": b"no", "train/cat/.thumbs/0.png": noise(7)})
    save(root.parent / "more", {"9.png": noise(9)})
    (root / "train" / "cat" / "more").symlink_to(root.parent / "more")
    data = read(root)
    assert data.labels.tolist() == [0, 1, 0]
    assert torch.equal(data.pixels[2], torch.from_numpy(noise(9)).permute(2, 0, 1))


def test_class_names_that_cannot_be_printed_are_refused(root: Path) -> None:
    for name in ("a\nb", b"caf\xe9".decode(errors="surrogateescape")):
        save(root, {f"train/{name}/0.png": noise(0)})
        with pytest.raises(
            ValueError, match=r"has a class folder '(a\\nb|caf\\udce9)': .*; rename"
        ):
            read(root)
        shutil.rmtree(root)


def test_a_folder_without_splits_has_the_split_all(root: Path) -> None:
    tree(root.parent, 3, ("data",))
    data = read(root, "all")
    assert (data.class_names, data.labels.tolist()) == (("cat", "dog"), [0, 1, 0, 1, 0, 1])
    with pytest.raises(FileNotFoundError, match=r"has no 'test' split, .* or --split all$"):
        read(root, "test")
    shutil.copytree(root, root / "train")
    with pytest.raises(FileNotFoundError, match=r"only \['train'\]; give --split train$"):
        read(root, "all")


def test_images_are_resized_where_asked_for_and_a_note_says_so(root: Path) -> None:
    """Also when the pixels of another choice lie in the cache."""
    save(root, {"train/a/0.png": noise(0), "train/a/1.png": noise(1, 9, 9, 3)})
    data = read(root, shape=(3, 6, 4), resize=True)
    assert torch.equal(data.pixels[0], torch.from_numpy(noise(0)).permute(2, 0, 1))
    assert re.match(r"images of another shape were converted to 3x6x4 .*: gray", data.notes[0])
    with pytest.raises(
        ValueError, match=r"shape is \(3, 6, 4\) .*a/1\.png is \(3, 9, 9\); .*resize"
    ):
        read(root, shape=(3, 6, 4))
    assert read(root, shape=(3, 6, 4), resize=True).notes == data.notes


def test_images_of_the_size_are_not_touched(root: Path) -> None:
    tree(root, 2)
    assert torch.equal(read(root, shape=(3, 6, 4)).pixels, read(root).pixels)


@pytest.mark.parametrize(("size", "across"), [((40, 20), True), ((20, 60), False)])
def test_images_are_resized_to_cover_and_cropped_at_their_center(
    size: tuple[int, int], across: bool, root: Path
) -> None:
    """A long image is black, but for the middle half: of it, a square has the middle only."""
    width, height = size
    position = np.arange(max(size)) * 4 // max(size)
    line = np.where((position == 1) | (position == 2), 200, 0).astype(np.uint8)
    image = np.broadcast_to(line if across else line[:, None], (height, width))
    save(root, {"train/a/0.png": np.ascontiguousarray(image)})
    pixels = read(root, shape=(1, 10, 10), resize=True).pixels[0, 0]
    assert pixels.shape == (10, 10)
    middle = pixels[:, 2:8] if across else pixels[2:8]
    assert (middle.int() - 200).abs().max() <= 1


def test_images_are_filtered_when_they_shrink(root: Path) -> None:
    board = (np.indices((48, 48)).sum(0) % 2 * 255).astype(np.uint8)
    save(root, {"train/a/0.png": board})
    assert (read(root, shape=(1, 8, 8), resize=True).pixels.int() - 128).abs().max() < 8


def test_images_stand_as_the_camera_stood(root: Path) -> None:
    """Orientation 6: the stored image is to be turned by 90 degrees, clockwise."""
    image, exif, buffer = Image.fromarray(noise(0)), Image.Exif(), BytesIO()
    exif[0x0112] = 6
    image.save(buffer, "png", exif=exif)
    save(root, {"train/a/0.png": buffer.getvalue(), "train/a/1.png": noise(1, 4, 6, 3)})
    pixels = read(root).pixels
    assert pixels.shape == (2, 3, 4, 6)
    turned = np.rot90(noise(0), -1).transpose(2, 0, 1).copy()
    assert torch.equal(pixels[0], torch.from_numpy(turned))


def test_modes_are_converted_to_what_they_show(root: Path) -> None:
    red = Image.new("P", (4, 6), 1)
    red.putpalette([0, 0, 0, 255, 0, 0])
    deep = np.full((6, 4), 100 * 257, dtype=np.uint16)
    save(
        root,
        {
            "train/a/0 color.png": noise(0),
            "train/a/1 transparent.png": Image.new("RGBA", (4, 6), (9, 9, 9, 0)),
            "train/a/2 palette.png": red,
            "train/a/3 deep.png": deep,
            "train/a/4 print.jpg": Image.new("CMYK", (4, 6), (0, 0, 0, 0)),
            "train/a/5 bit.png": Image.new("1", (4, 6), 1),
        },
    )
    corner = read(root).pixels[1:, :, 3, 2].tolist()
    assert corner == [[255] * 3, [255, 0, 0], [100] * 3, [255] * 3, [255] * 3]
    gray = read(root, shape=(1, 6, 4), resize=True).pixels
    assert gray[1:, 0, 3, 2].tolist() == [255, 76, 100, 255, 255]
