"""`python -m purification`: files, folders and arrays in, the same purified out; runs go on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import purification.__main__ as program
import rdc.hub.checkpoint
from purification import DiffusionPurifier, build
from purification.__main__ import Purification, main
from rdc import Denoiser, ImageClassifier, ImageClassifierConfig
from rdc.commands.program import run_program
from rdc.data import load
from rdc.runs.exclusive import exclusive
from tests.support.launchers import printed
from tests.support.launchers import run as run_module
from tests.support.pictures import noise, save
from tests.support.tiny import tiny_denoiser

LISTS = ("purification-files.jsonl", "purification.json")
NAMES = ("a.png", "b.jpg", "deep/c.png", "deep/er/d.bmp")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A denoiser of 1x8x8 images and a classifier of them."""
    directory = tmp_path_factory.mktemp("models")
    tiny_denoiser().save_pretrained(directory / "denoiser")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ImageClassifierConfig("cnn-4", image_size=8, channels=1, num_classes=3)
        ImageClassifier(config).save_pretrained(directory / "classifier")
    return directory


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every preset in three steps."""

    def short(*args: Any, **options: Any) -> DiffusionPurifier:
        return build(*args, **options, steps=3)

    monkeypatch.setattr(program, "build", short)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {name: noise(i, 8, 8) for i, name in enumerate(NAMES)}
    return save(tmp_path / "in", files)


def run(models: Path, *args: object) -> int:
    given = [*args, *([] if "--model" in args else ["--model", models / "denoiser"])]
    return run_program(main, [str(arg) for arg in given])


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def expected(images: np.ndarray, **options: Any) -> np.ndarray:
    """uint8 (N, 8, 8) purified by the library."""
    purifier = build("diffpure", tiny_denoiser(), preset="cifar10-linf", steps=3, **options)
    x = torch.from_numpy(images)[:, None].float() / 255
    return to_uint8(purifier(x))


def to_uint8(images: Tensor) -> np.ndarray:
    return (255 * images.clamp(0, 1)).round().byte()[:, 0].numpy()


def tree(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def test_a_file(models: Path, folder: Path, tmp_path: Path) -> None:
    assert run(models, folder / "a.png", tmp_path / "new" / "a.png") == 0
    given = pixels(folder / "a.png")[None]
    assert (pixels(tmp_path / "new" / "a.png") == expected(given)[0]).all()
    assert list(tree(tmp_path / "new")) == ["a.png"]


def test_a_folder_keeps_its_sub_folders(models: Path, folder: Path, tmp_path: Path, capsys) -> None:
    assert run(models, folder, tmp_path / "out", "--batch-size", 3) == 0
    written = tree(tmp_path / "out")
    assert sorted(written) == [
        "a.png", "b.png", "deep/c.png", "deep/er/d.png", *LISTS
    ]  # fmt: skip
    given = np.stack([np.asarray(Image.open(folder / name).convert("L")) for name in NAMES])
    shown = [pixels((tmp_path / "out" / name).with_suffix(".png")) for name in NAMES]
    assert np.abs(np.stack(shown).astype(int) - expected(given)).max() <= 1
    assert capsys.readouterr().out == ""


def test_images_that_become_noisier_are_reported(models, tmp_path: Path, capsys) -> None:
    """A network without training leaves noise on a blank image; a trained one none on a digit."""
    digit = load("digits", "test").pixels[0, 0].numpy() * 15
    for name, image, noisier in (
        (models / "denoiser", np.full_like(digit, 128), 1),
        ("digits", digit, 0),
    ):
        given = save(tmp_path, {"in.png": image}) / "in.png"
        assert run(models, given, tmp_path / "out.png", "--model", name) == 0
        printed = capsys.readouterr().err
        assert printed.count("warning: purified images are noisier than the given ones") == noisier


def test_settings_are_kept(models: Path, folder: Path, tmp_path: Path) -> None:
    run(models, folder, tmp_path / "out", "--seed", 3)
    kept = json.loads((tmp_path / "out" / "purification.json").read_text())
    assert kept["model"] == str(models / "denoiser")
    assert (kept["method"], kept["preset"], kept["seed"]) == ("diffpure", "cifar10-linf", 3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["diffpure", "contrastive"])
@pytest.mark.parametrize("draws", ["frozen", "fresh"])
def test_a_killed_run_goes_on(models, folder, tmp_path, monkeypatch, method, draws) -> None:
    """Killed in the second batch: what is there is not touched, the rest is as in one go."""
    options = ["--noise", draws, "--method", method, "--batch-size", 2]
    options += ["--classifier", models / "classifier"] if method == "contrastive" else []
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(models, folder, whole, *options)
    original, calls = Purification.purify, []

    def dies(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(Purification, "purify", dies)
    assert run(models, folder, out, *options) == 130
    assert sorted(tree(out)) == ["a.png", "b.png", *LISTS]
    before = (out / "a.png").stat().st_mtime_ns
    monkeypatch.setattr(Purification, "purify", original)
    assert run(models, folder, out, *options) == 0
    assert tree(out) == tree(whole)
    assert (out / "a.png").stat().st_mtime_ns == before


def test_nothing_is_done_twice(models, folder, tmp_path, monkeypatch) -> None:
    run(models, folder, tmp_path / "out")
    monkeypatch.setattr(Purification, "purify", None)
    assert run(models, folder, tmp_path / "out") == 0


def test_changed_images_are_purified_again(models, folder, tmp_path) -> None:
    """Also one that was away meanwhile; of a file that is broken now nothing is left."""
    out = tmp_path / "out"
    run(models, folder, out)
    before = tree(out)
    (folder / "a.png").rename(tmp_path / "away.png")
    (folder / "b.jpg").unlink()
    save(folder, {"b.bmp": noise(8, 8, 8)})
    (folder / "deep" / "c.png").write_bytes(b"broken")
    assert run(models, folder, out) == 1
    save(folder, {"a.png": noise(9, 8, 8)})
    assert run(models, folder, out) == 1
    after = tree(out)
    assert sorted(after) == ["a.png", "b.png", "deep/er/d.png", *LISTS]
    assert after["deep/er/d.png"] == before["deep/er/d.png"]
    for name in ("a.png", "b.bmp"):
        shown = pixels((out / name).with_suffix(".png"))
        assert (shown == expected(pixels(folder / name)[None])[0]).all()


def test_folders_of_earlier_versions_are_finished(models, folder, tmp_path, monkeypatch) -> None:
    """They list no files."""
    run(models, folder, tmp_path / "out")
    (tmp_path / "out" / LISTS[0]).unlink()
    monkeypatch.setattr(Purification, "purify", None)
    assert run(models, folder, tmp_path / "out") == 0


def test_a_folder_in_use_is_refused(models, folder, tmp_path, capsys) -> None:
    with exclusive(tmp_path / "out"):
        assert run(models, folder, tmp_path / "out") == 2
    assert "in use by another start of a command" in capsys.readouterr().err
    assert tree(tmp_path / "out") == {}


def test_images_whose_batch_has_changed_are_purified_again(models, tmp_path, monkeypatch) -> None:
    """A new file shifts the batches in which images see each other."""
    folder = save(tmp_path / "in", {f"{i}.png": noise(i, 8, 8) for i in range(1, 5)})
    options = [*without_a_bank(models), "--batch-size", 2]
    assert run(models, folder, tmp_path / "out", *options) == 0
    save(folder, {f"{i}.png": noise(10 + i, 8, 8) for i in (0, 5)})
    for out in ("out", "new"):
        assert run(models, folder, tmp_path / out, *options) == 0
    continued, new = tree(tmp_path / "out"), tree(tmp_path / "new")
    assert all(continued[f"{i}.png"] == new[f"{i}.png"] for i in range(6))
    monkeypatch.setattr(Purification, "purify", None)
    assert run(models, folder, tmp_path / "out", *options) == 0


def test_images_of_other_settings_are_not_mixed(models, folder, tmp_path, capsys) -> None:
    run(models, folder, tmp_path / "out")
    assert run(models, folder, tmp_path / "out", "--seed", 1) == 2
    assert "holds a run with other settings: --seed: 0 -> 1; give" in capsys.readouterr().err


def test_images_of_another_folder_are_not_passed_off(models, folder, tmp_path, capsys) -> None:
    other = save(tmp_path / "other", {name: noise(9 + i, 8, 8) for i, name in enumerate(NAMES)})
    run(models, folder, tmp_path / "out")
    before = tree(tmp_path / "out")
    assert run(models, other, tmp_path / "out") == 2
    assert f"settings: --given: '{folder}' -> '{other}'; give" in capsys.readouterr().err
    assert tree(tmp_path / "out") == before


def test_a_folder_is_the_same_by_any_path(models, folder, tmp_path, monkeypatch) -> None:
    run(models, folder, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Purification, "purify", None)
    assert run(models, "in/deep/..", "out") == 0


@pytest.mark.slow
@pytest.mark.parametrize("changed", ["model", "classifier", "auxiliary", "bank"])
def test_images_of_other_weights_are_not_passed_off(
    models, folder, tmp_path, capsys, changed: str
) -> None:
    """Under the same names."""
    copies = shutil.copytree(models, tmp_path / "models")
    shutil.copytree(copies / "classifier", copies / "auxiliary")
    np.save(tmp_path / "bank.npy", np.random.default_rng(0).normal(size=(6, 3)))
    options = ["--model", copies / "denoiser"]
    if changed == "auxiliary":
        options += ["--method", "agdm", "--auxiliary", copies / "auxiliary"]
    else:
        options += ["--method", "contrastive", "--classifier", copies / "classifier"]
        options += ["--bank", tmp_path / "bank.npy"]
    assert run(models, folder, tmp_path / "out", *options) == 0
    assert run(models, folder, tmp_path / "out", *options) == 0
    if changed == "bank":
        np.save(tmp_path / "bank.npy", np.random.default_rng(1).normal(size=(6, 3)))
    else:
        model = Denoiser if changed == "model" else ImageClassifier
        directory = copies / ("denoiser" if changed == "model" else changed)
        network = model.from_pretrained(directory)
        next(network.parameters()).data.mul_(2)
        network.save_pretrained(directory)
    assert run(models, folder, tmp_path / "out", *options) == 2
    assert f"other settings: {changed}: its content has changed (" in capsys.readouterr().err


def test_a_broken_image_costs_only_itself(models, folder, tmp_path, capsys) -> None:
    (folder / "b.jpg").write_bytes(b"not an image")
    assert run(models, folder, tmp_path / "out") == 1
    assert sorted(tree(tmp_path / "out")) == [
        "a.png", "deep/c.png", "deep/er/d.png", *LISTS
    ]  # fmt: skip
    err = capsys.readouterr().err
    assert "b.jpg is not a readable image" in err
    assert "1 of 4 images could not be purified" in err


def test_a_picture_without_images_is_said_to_be_left_out(models, tmp_path, capsys) -> None:
    (tmp_path / "a.png").write_bytes(b"not an image")
    picture = tmp_path / "p.png"
    given = (tmp_path / "a.png", tmp_path / "out.png", "--picture", picture)
    assert run(models, *given) == 1
    assert f"picture={picture}: not drawn" in capsys.readouterr().err and not picture.exists()


def test_noise_is_shared_or_each_images_own(models: Path, tmp_path: Path) -> None:
    same = save(tmp_path / "in", {"a.png": noise(0, 8, 8), "b.png": noise(0, 8, 8)})
    for draws, equal in (("frozen", True), ("fresh", False)):
        out = tmp_path / draws
        assert run(models, same, out, "--noise", draws) == 0
        assert ((pixels(out / "a.png") == pixels(out / "b.png")).all()) == equal
    alone = tmp_path / "alone.png"
    run(models, same / "b.png", alone, "--noise", "fresh")
    assert (pixels(alone) == pixels(tmp_path / "fresh" / "b.png")).all()


def test_images_keep_their_own_sizes(models: Path, tmp_path: Path) -> None:
    files = {"a.png": noise(0, 6, 11), "b.png": noise(1, 20, 9, 3), "c.png": noise(2, 8, 8)}
    save(tmp_path / "in", files)
    assert run(models, tmp_path / "in", tmp_path / "out", "--resize") == 0
    shapes = [pixels(tmp_path / "out" / name).shape for name in files]
    assert shapes == [(6, 11), (20, 9), (8, 8)]


def test_color_becomes_gray_only_with_resize(models: Path, tmp_path: Path, capsys) -> None:
    colors = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "in.png")
    assert run(models, tmp_path / "in.png", tmp_path / "out.png") != 0
    assert "in.png: images: PIL image is 3x8x8, but this model takes 1x8x8" in (
        capsys.readouterr().err
    )
    assert run(models, tmp_path / "in.png", tmp_path / "out.png", "--resize") == 0
    with Image.open(tmp_path / "out.png") as image:
        assert (image.mode, image.size) == ("L", (8, 8))


def test_images_of_another_size_are_refused_unless_resizing(models, tmp_path, capsys) -> None:
    save(tmp_path / "in", {"a.png": noise(0, 6, 11), "c.png": noise(2, 8, 8)})
    assert run(models, tmp_path / "in", tmp_path / "out") == 1
    assert "a.png: 6x11 pixels, but the denoiser takes 8x8; give --resize" in (
        capsys.readouterr().err
    )
    assert sorted(tree(tmp_path / "out")) == ["c.png", *LISTS]
    np.save(tmp_path / "in.npy", noise(4, 3, 6, 6))
    assert run(models, tmp_path / "in.npy", tmp_path / "out.npy") == 2
    assert "6x6 pixels, but the denoiser takes 8x8; give --resize" in capsys.readouterr().err
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 8, 8), (5, 8, 8, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_arrays_keep_their_shape_and_type(models, tmp_path, shape, dtype) -> None:
    given = noise(4, *shape)
    array = given if dtype == np.uint8 else (given / 255).astype(dtype)
    np.save(tmp_path / "in.npy", array)
    assert run(models, tmp_path / "in.npy", tmp_path / "out.npy", "--batch-size", 2) == 0
    purified = np.load(tmp_path / "out.npy")
    assert (purified.shape, purified.dtype) == (shape, dtype)
    wanted = expected(given.reshape(5, 8, 8)).reshape(shape)
    scale = 1 if dtype == np.uint8 else 255
    assert np.abs(purified.astype(float) * scale - wanted).max() <= 1
    assert purified.min() >= 0 and purified.max() * scale <= 255


def test_rows_of_an_array_have_fresh_noise_by_number(models: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", noise(4, 1, 8, 8).repeat(3, axis=0))
    for size in (1, 3):
        run(models, tmp_path / "in.npy", tmp_path / f"{size}.npy", "--noise", "fresh",
            "--batch-size", size)  # fmt: skip
    one, three = np.load(tmp_path / "1.npy"), np.load(tmp_path / "3.npy")
    assert np.abs(one.astype(int) - three).max() <= 1
    assert (three[0] != three[1]).any() and (three[1] != three[2]).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in", "in/a.png", "in.npy"])
def test_picture(models, folder, tmp_path, capsys, name: str) -> None:
    np.save(tmp_path / "in.npy", noise(4, 5, 8, 8))
    out = {"in": "out", "in/a.png": "out.png", "in.npy": "out.npy"}[name]
    picture = tmp_path / "pictures" / "p.png"
    assert run(models, tmp_path / name, tmp_path / out, "--picture", picture) == 0
    rows = 1 if name == "in/a.png" else 4
    assert pixels(picture).shape[:2] == (200 * rows, 800)
    assert pixels(picture).std() > 30
    assert capsys.readouterr().out == f"wrote {picture}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "options"),
    [("gdmp", []), ("agdm", ["--auxiliary"]), ("coup", ["--classifier"]),
     ("contrastive", ["--classifier"])],
)  # fmt: skip
def test_guided_methods(models, folder, tmp_path, method: str, options: list[str]) -> None:
    networks = [part for option in options for part in (option, models / "classifier")]
    assert run(models, folder, tmp_path / "plain") == 0
    assert run(models, folder, tmp_path / "out", "--method", method, *networks) == 0
    assert tree(tmp_path / "plain")["a.png"] != tree(tmp_path / "out")["a.png"]


def test_contrastive_takes_a_bank(models: Path, folder: Path, tmp_path: Path, capsys) -> None:
    """Then one image is enough."""
    given = [folder / "a.png", tmp_path / "out.png", "--method", "contrastive"]
    given += ["--classifier", models / "classifier"]
    assert run(models, *given) == 2
    assert "images=1: " in capsys.readouterr().err
    for bank in (np.full((6, 3), "1"), np.ones((6, 3), complex)):
        np.save(tmp_path / "bank.npy", bank)
        assert run(models, *given, "--bank", tmp_path / "bank.npy") == 2
        assert f"bank.npy: {bank.dtype}; give logits (M, K)" in capsys.readouterr().err
    np.save(tmp_path / "bank.npy", np.random.default_rng(0).normal(size=(6, 3)))
    assert run(models, *given, "--bank", tmp_path / "bank.npy") == 0


def without_a_bank(models: Path) -> list[object]:
    return ["--method", "contrastive", "--classifier", models / "classifier"]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "sizes"), [(4, [2, 2]), (5, [2, 3]), (3, [3])])
def test_no_image_is_left_alone_where_they_see_each_other(
    models, tmp_path, monkeypatch, count: int, sizes: list[int]
) -> None:
    """The picture's batch is the first."""
    np.save(tmp_path / "in.npy", noise(4, count, 8, 8))
    save(tmp_path / "in", {f"{i}.png": noise(i, 8, 8) for i in range(count)})
    seen, original = [], Purification._batch

    def spied(self: Purification, images: dict) -> Tensor:
        seen.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Purification, "_batch", spied)
    options = [*without_a_bank(models), "--batch-size", 2, "--picture", tmp_path / "p.png"]
    for given, out in (("in.npy", "out.npy"), ("in", "out")):
        seen.clear()
        assert run(models, tmp_path / given, tmp_path / out, *options) == 0
        assert seen == [*sizes, sizes[0]]
    assert len(np.load(tmp_path / "out.npy")) == count


@pytest.mark.parametrize(("count", "size"), [(1, 64), (3, 1)])
def test_an_image_alone_is_refused_before_any_work(models, tmp_path, capsys, count, size) -> None:
    save(tmp_path / "in", {f"{i}.png": noise(i, 8, 8) for i in range(count)})
    np.save(tmp_path / "in.npy", noise(4, count, 8, 8))
    options = [*without_a_bank(models), "--batch-size", size]
    for given, out in (("in.npy", "out.npy"), ("in", "out")):
        assert run(models, tmp_path / given, tmp_path / out, *options) == 2
        assert f"images={count}: in batches of {size}, one is alone" in capsys.readouterr().err
        assert not (tmp_path / out).exists()


def test_an_image_whose_others_are_broken_costs_only_itself(models, folder, tmp_path, capsys):
    (folder / "b.jpg").write_bytes(b"not an image")
    out = tmp_path / "out"
    assert run(models, folder, out, *without_a_bank(models), "--batch-size", 2) == 1
    assert sorted(tree(out)) == ["deep/c.png", "deep/er/d.png", *LISTS]
    assert "a.png is alone: no other image of its batch can be read" in capsys.readouterr().err


def place(tmp_path: Path) -> None:
    """Things of every kind."""
    save(tmp_path, {"image.png": noise(0, 8, 8), "images/a.png": noise(1, 8, 8)})
    np.save(tmp_path / "array.npy", noise(2, 3, 8, 8))
    np.save(tmp_path / "integers.npy", np.zeros((3, 8, 8), np.int64))
    np.save(tmp_path / "color.npy", np.zeros((3, 8, 8, 3), np.uint8))
    np.save(tmp_path / "none.npy", np.zeros((0, 8, 8), np.uint8))
    np.save(tmp_path / "large.npy", np.full((3, 8, 8), 7.0))
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    save(tmp_path / "twins", {"a.png": noise(0, 8, 8), "a.jpg": noise(1, 8, 8)})
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")


@pytest.mark.parametrize(
    ("given", "out", "message"),
    [
        ("missing.png", "out.png", "missing.png does not exist"),
        ("missing.npy", "out.npy", "missing.npy is not a file"),
        ("missing", "out", "missing does not exist"),
        ("empty", "out", "no image below the folder"),
        ("image.png", "images", "is a folder, but an image file was given"),
        ("image.png", "out.jpg", "becomes a .png file"),
        ("image.png", "images/../image.png", "is the given file, which it would replace"),
        ("array.npy", "array.npy", "is the given file, which it would replace"),
        ("images", "image.png", "is a file, but"),
        ("images", "images/out", "lies in"),
        ("images", "images", "lies in"),
        ("images", "foreign", "holds files but no purification.json"),
        ("twins", "out", "would both become"),
        ("array.npy", "out.png", "becomes a .npy file"),
        ("array.npy", "images", "is a folder, but an array was given"),
        ("integers.npy", "out.npy", "int64; give uint8, or floats"),
        ("color.npy", "out.npy", "this denoiser takes (N, H, W, 1) or (N, H, W)"),
        ("none.npy", "out.npy", "no images, shape (0, 8, 8, 1); give at least one"),
        ("large.npy", "out.npy", "values from 7 to 7, expected [0, 1]"),
        ("broken.npy", "out.npy", "is not a complete .npy array"),
    ],
)
def test_what_cannot_be_is_said(models, tmp_path, capsys, given, out, message: str) -> None:
    place(tmp_path)
    before = tree(tmp_path)
    assert run(models, tmp_path / given, tmp_path / out) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and message in printed.err
    assert "error: " in printed.err and "Traceback" not in printed.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("p.txt", "p.txt cannot become a picture; give a file that ends in one of"),
        ("images", "cannot become a picture"),
        ("image.png", "is among the images given or purified"),
        ("out.png", "is among the images given or purified"),
    ],
)
def test_impossible_pictures_are_refused_before_any_work(
    models, tmp_path, capsys, monkeypatch, picture: str, message: str
) -> None:
    place(tmp_path)
    before = tree(tmp_path)
    monkeypatch.setattr(Purification, "purify", None)
    paths = [tmp_path / "image.png", tmp_path / "out.png", "--picture", tmp_path / picture]
    assert run(models, *paths) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --picture=") and message in err
    assert tree(tmp_path) == before


def test_a_picture_among_the_purified_images_is_refused(models, folder, tmp_path, capsys) -> None:
    picture = tmp_path / "out" / "a.png"
    assert run(models, folder, tmp_path / "out", "--picture", picture) == 2
    assert f"--picture={picture} is among the images given or purified" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("given", "out"), [("image.png", "x.png"), ("array.npy", "x.npy")])
def test_a_place_that_cannot_be_written_is_noticed_before_any_work(
    models, tmp_path, capsys, monkeypatch, given: str, out: str
) -> None:
    place(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setattr(Purification, "purify", None)
    assert run(models, tmp_path / given, tmp_path / "file" / out) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: out={tmp_path / 'file' / out} cannot be used: ")


def test_unknown_models_and_presets(models, folder, tmp_path, capsys) -> None:
    assert run(models, folder, tmp_path / "out", "--model", "nowhere") == 2
    packaged = rdc.hub.checkpoint.packaged_models("config.json")
    assert f"--model='nowhere' is not a directory; packaged models: {packaged}" in (
        capsys.readouterr().err
    )
    assert run(models, folder, tmp_path / "out", "--preset", "mnist") == 2
    assert "--preset='mnist': diffpure has ['celebahq-linf'" in capsys.readouterr().err
    assert run(models, folder, tmp_path / "out", "--method", "coup") == 2
    err = capsys.readouterr().err
    assert "--classifier=None: coup is guided by a network" in err
    assert err.endswith("give one, such as the packaged image classifier 'digits-cnn'\n")
    assert run(models, folder, tmp_path / "out", "--batch-size", "0") == 2
    assert capsys.readouterr().err == "error: --batch-size=0 must be at least 1\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_end_to_end(models: Path, folder: Path, tmp_path: Path) -> None:
    command = ["purification", folder / "a.png", tmp_path / "a.png", "--model", models / "denoiser"]
    status = run_module(tmp_path / "printed", *command, cwd=folder)
    assert status == 0, printed(tmp_path / "printed")
    assert pixels(tmp_path / "a.png").shape == (8, 8)
