"""Every kind of image is taken at its exact value; errors say what is wrong with the others."""

import os
import resource
import socket
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from torch import Tensor

import rdc.image_files
from rdc.data.decode import Target, decode
from rdc.image_files import image_files, read_image
from rdc.images import check_form, check_images, convert_images, to_images, to_pixels, to_x
from tests.support.oracle import some_images

GRAY, COLOR = (1, 4, 6), (3, 4, 6)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def unit(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32) / np.float32(255))


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_scales_are_each_others_inverse() -> None:
    images = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert to_x(images).tolist() == [-1, -0.5, 0, 1]
    assert torch.equal(to_pixels(to_x(images)), images)


@pytest.mark.parametrize("shape", [GRAY, COLOR])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_float_tensors_come_back_as_they_are(shape, dtype) -> None:
    images = some_images(2, shape, dtype=dtype)
    assert to_images(images, shape) is images
    assert check_images(images, shape) is images
    assert torch.equal(to_images(images[1], shape), images[1:])


def test_gradients_flow_through() -> None:
    images = some_images(2, COLOR).requires_grad_()
    to_images(list(images), COLOR).sum().backward()
    assert images.grad is not None
    assert torch.equal(images.grad, torch.ones_like(images))


@pytest.mark.parametrize("given", [(4, 6), (1, 4, 6), (4, 6, 1), (1, 4, 6, 1)])
def test_one_gray_array(given) -> None:
    array = pixels(*given)
    assert torch.equal(to_images(array, GRAY), unit(array).reshape(1, 1, 4, 6))


@pytest.mark.parametrize("given", [(5, 4, 6), (5, 4, 6, 1)])
def test_many_gray_arrays(given) -> None:
    array = pixels(*given)
    assert torch.equal(to_images(array, GRAY), unit(array).reshape(5, 1, 4, 6))


def test_color_arrays_have_their_channels_last() -> None:
    array = pixels(5, 4, 6, 3)
    expected = torch.stack([unit(array[..., channel]) for channel in range(3)], dim=1)
    assert torch.equal(to_images(array, COLOR), expected)
    assert torch.equal(to_images(array[2], COLOR), expected[2:3])


def test_arrays_are_copied() -> None:
    array = pixels(4, 6)
    array.setflags(write=False)
    images = to_images(array[:, ::-1], GRAY)
    images.zero_()
    assert array.any()


@settings(max_examples=30, deadline=None)
@given(arrays.arrays(np.uint8, (4, 2, 3, 3)), st.permutations(range(4)))
def test_bytes_round_trip_in_any_order(array: np.ndarray, order: list[int]) -> None:
    images = to_images([array[row] for row in order], (3, 2, 3))
    assert torch.equal(images * 255, torch.from_numpy(array[order]).permute(0, 3, 1, 2).float())
    assert torch.equal(images, to_images(array, (3, 2, 3))[order])


def test_pil_images_of_the_models_size_are_exact() -> None:
    array = pixels(4, 6, 3)
    assert torch.equal(to_images(Image.fromarray(array), COLOR), to_images(array, COLOR))
    gray = array[..., 0]
    assert torch.equal(to_images(Image.fromarray(gray), GRAY), to_images(gray, GRAY))


def test_pil_images_are_resized() -> None:
    """Left half black, right half white, at another size: width and height are not confused."""
    array = np.zeros((8, 12), dtype=np.uint8)
    array[:, 6:] = 255
    images = to_images(Image.fromarray(array), GRAY, resize=True)
    assert images.shape == (1, 1, 4, 6)
    expected = torch.tensor([0.0, 0, 1, 1]).expand(4, 4)
    torch.testing.assert_close(images[0, 0, :, [0, 1, 4, 5]], expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("size", [(12, 8), (20, 8), (9, 30), (3, 2)])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("shape", [GRAY, COLOR])
def test_pictures_are_seen_as_in_training(shape, orientation: int, size, tmp_path: Path) -> None:
    """Turned as the camera was held, and cropped at their center instead of squeezed."""
    image, exif = Image.fromarray(pixels(*size[::-1], 3)), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "camera.png", exif=exif)
    content = (tmp_path / "camera.png").read_bytes()
    expected = unit(decode("camera.png", content, Target(shape, resize=True)))[None]
    found = to_images(tmp_path / "camera.png", shape, resize=True)
    assert torch.equal(found, expected)
    with Image.open(BytesIO(content)) as opened:
        assert torch.equal(to_images(opened, shape, resize=True), expected)
        assert opened.size == size


def test_files_stand_as_the_camera_stood(tmp_path: Path) -> None:
    """Orientation 6: the stored image is to be turned by 90 degrees, clockwise."""
    array, exif = pixels(6, 4), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "camera.png", exif=exif)
    turned = unit(np.rot90(array, -1).copy())[None, None]
    assert torch.equal(to_images(tmp_path / "camera.png", GRAY), turned)
    image = read_image(tmp_path / "camera.png")
    assert image.size == (6, 4)
    assert torch.equal(to_images(image, GRAY), turned)


def test_pil_images_are_filtered_when_they_shrink() -> None:
    """A fine checkerboard becomes gray: no pixel is picked, all are averaged."""
    board = (np.indices((32, 48)).sum(0) % 2 * 255).astype(np.uint8)
    assert (to_images(Image.fromarray(board), GRAY, resize=True) - 0.5).abs().max() < 0.1


@pytest.mark.parametrize(
    ("mode", "color", "gray", "rgb"),
    [
        ("L", 100, 100, (100, 100, 100)),
        ("1", 1, 255, (255, 255, 255)),
        ("RGB", (255, 0, 0), 76, (255, 0, 0)),
        ("RGBA", (255, 0, 0, 255), 76, (255, 0, 0)),
        ("LA", (200, 255), 200, (200, 200, 200)),
        ("CMYK", (0, 255, 255, 0), 76, (255, 0, 0)),
        ("I;16", 100 * 257, 100, (100, 100, 100)),
        ("I;16B", 65535, 255, (255, 255, 255)),
        ("I;16", 12850 + 129, 51, (51, 51, 51)),
    ],
)
def test_pil_modes(mode: str, color: Any, gray: int, rgb: tuple[int, ...]) -> None:
    image = Image.new(mode, (6, 4), color)
    assert (to_images(image, GRAY, resize=True) * 255).unique().tolist() == [gray]
    assert (to_images(image, COLOR) * 255)[0, :, 3, 5].tolist() == list(rgb)


@pytest.mark.parametrize("transparency", [None, 0, bytes([255] * 256)])
def test_palettes_are_looked_up(transparency, tmp_path: Path) -> None:
    """Index 1 is red, and a palette with transparency (an ordinary GIF or PNG) does not warn."""
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.info |= {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "palette.png")
    images = to_images(tmp_path / "palette.png", COLOR)
    assert images[0, :, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tif", ".webp"])
def test_files_without_loss(suffix: str, tmp_path: Path) -> None:
    array, path = pixels(4, 6), tmp_path / f"image{suffix}"
    Image.fromarray(array).save(path, lossless=True)  # only WebP has the choice
    expected = unit(array)[None, None]
    assert torch.equal(to_images(path, GRAY), expected)
    assert torch.equal(to_images(str(path), GRAY), expected)


def test_sixteen_bit_files_keep_their_brightness(tmp_path: Path) -> None:
    array = pixels(4, 6)
    Image.fromarray(array.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert torch.equal(to_images(tmp_path / "deep.png", GRAY), unit(array)[None, None])


def test_read_image_is_independent_of_the_file(tmp_path: Path) -> None:
    frames = [Image.fromarray(pixels(4, 6, seed=seed)) for seed in (0, 1)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    image = read_image(tmp_path / "two.gif")
    (tmp_path / "two.gif").unlink()
    assert torch.equal(to_images(image, GRAY), unit(pixels(4, 6))[None, None])


# --- images of other shapes ---


def photo() -> Image.Image:
    return Image.fromarray(pixels(8, 12, 3))


@pytest.mark.parametrize("kind", ["file", "PIL image", "array", "tensor"])
def test_no_color_is_lost_unasked(kind: str, tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    given: Any = {
        "file": tmp_path / "photo.png", "PIL image": photo(), "array": pixels(8, 12, 3),
        "tensor": unit(pixels(8, 12, 3)).permute(2, 0, 1),
    }[kind]  # fmt: skip
    with pytest.raises(ValueError, match=r"^images: .*(3x8x12|8, 12).*(1x4x6|1, 4, 6|4x6 pixels)"):
        to_images(given, GRAY)
    converted = convert_images([given, given], GRAY, resize=True)
    assert converted.images.shape == (2, *GRAY)
    assert converted.changes == ("3x8x12 converted to 1x4x6: to gray, resized",) * 2
    if kind != "tensor":
        assert torch.equal(converted.images[:1], to_images(photo(), GRAY, resize=True))


@pytest.mark.parametrize("kind", ["file", "PIL image"])
def test_larger_pictures_are_reduced_and_smaller_ones_refused(kind: str, tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    given = tmp_path / "photo.png" if kind == "file" else photo()
    found = convert_images(given, COLOR)
    assert found.changes == ("3x8x12 converted to 3x4x6: resized",)
    assert torch.equal(found.images, to_images(given, COLOR, resize=True))
    for larger in ((3, 9, 6), (3, 4, 13)):
        with pytest.raises(ValueError, match=r"3x8x12, but this model takes .* resize=True"):
            to_images(given, larger)


def test_the_remedy_is_named() -> None:
    with pytest.raises(ValueError, match=r"or resize=True \(--resize\) to convert it$"):
        to_images(photo(), GRAY)


@pytest.mark.parametrize("target", [GRAY, COLOR, (1, 9, 9), (3, 16, 5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_floats_are_converted_as_bytes_are(channels: int, target) -> None:
    array = pixels(8, 12, channels)
    floats = unit(array).permute(2, 0, 1)[None].double()
    found = convert_images(floats, target, resize=True)
    expected = convert_images(array, target, resize=True)
    assert found.images.dtype == torch.float64 and found.changes == expected.changes
    torch.testing.assert_close(found.images.float(), expected.images, rtol=0, atol=8 / 255)


def test_crops_are_named_where_the_aspect_changes() -> None:
    (change,) = convert_images(pixels(8, 8), GRAY, resize=True).changes
    assert change == "1x8x8 converted to 1x4x6: resized, cropped at the center"


def test_gray_stays_gray_whatever_its_mode() -> None:
    """Between gray and color, what loses nothing is done, and named."""
    gray = Image.fromarray(pixels(4, 6))
    for image in (gray.convert("RGB"), gray.convert("P")):
        converted = convert_images(image, GRAY)
        assert torch.equal(converted.images, to_images(gray, GRAY))
        assert converted.changes == ("3x4x6 converted to 1x4x6: to gray",)
    assert convert_images(gray, COLOR).changes == ("1x4x6 converted to 3x4x6: gray to color",)
    with pytest.raises(ValueError, match="PIL image is 3x4x6, but this model takes 1x4x6"):
        to_images(Image.fromarray(pixels(4, 6, 3)), GRAY)


@pytest.mark.parametrize("given", [(8, 12), (8, 12, 1), (2, 8, 12), (2, 8, 12, 1), (2, 8, 12, 3)])
def test_arrays_of_every_form_are_resized(given) -> None:
    converted = convert_images(pixels(*given), GRAY, resize=True)
    assert converted.images.shape == (2 if given[0] == 2 else 1, *GRAY)
    assert all("resized" in change for change in converted.changes)


@pytest.mark.parametrize(("mode", "channels"), [("RGBA", 4), ("LA", 2)])
@pytest.mark.parametrize("size", [(12, 8), (6, 4)])
def test_arrays_with_transparency_are_seen_as_pictures(mode: str, channels: int, size) -> None:
    array = pixels(*size[::-1], channels)
    for shape in (GRAY, COLOR):
        expected = convert_images(Image.fromarray(array, mode), shape, resize=True)
        for images, count in ((array, 1), (np.stack([array, array]), 2)):
            found = convert_images(images, shape, resize=True)
            assert found.changes == expected.changes * count
            assert torch.equal(found.images, expected.images.expand(count, -1, -1, -1))


@pytest.mark.parametrize("shape", [GRAY, COLOR])
def test_channels_first_is_not_three_gray_images(shape) -> None:
    with pytest.raises(ValueError, match=r"array of shape \(3, 8, 12\); give a color image as HWC"):
        to_images(pixels(3, 8, 12), shape, resize=True)
    assert len(to_images(pixels(3, 8, 12, 1), shape, resize=True)) == 3
    assert len(to_images(pixels(3, 4, 6), GRAY, resize=True)) == 3


KINDS: dict[str, Any] = {
    "sparse_coo": lambda: torch.zeros(1, *GRAY).to_sparse(),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(GRAY)]),
    "meta": lambda: torch.zeros(1, *GRAY, device="meta"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_without_plain_pixels_are_refused(kind: str) -> None:
    for resize in (False, True):
        with pytest.raises(ValueError, match=rf"^images: a .*{kind}.*; give"):
            to_images(KINDS[kind](), GRAY, resize=resize)


def test_lists_mix_all_kinds(tmp_path: Path) -> None:
    array = pixels(6, 4, 6)
    Image.fromarray(array[0]).save(tmp_path / "a.png")
    Image.fromarray(array[1]).save(tmp_path / "b.png")
    mixed = [
        str(tmp_path / "a.png"),
        tmp_path / "b.png",
        Image.fromarray(array[2]),
        array[3],
        unit(array[4:5]),
        [array[5]],
    ]
    assert torch.equal(to_images(mixed, GRAY), unit(array)[:, None])
    assert torch.equal(to_images(tuple(mixed), GRAY), unit(array)[:, None])


def put(value: float) -> Tensor:
    """Three images of which the last has one bad pixel."""
    images = some_images(3, GRAY)
    images[2, 0, 3, 5] = value
    return images


BAD = {
    "nan": (lambda: put(float("nan")), r"NaN or infinity .* give numbers in \[0, 1\]"),
    "infinity": (lambda: put(float("inf")), r"NaN or infinity .* give numbers in \[0, 1\]"),
    "above 1": (lambda: put(1.01), r"to 1\.01, expected \[0, 1\] .*divide by 255"),
    "below 0": (lambda: put(-0.01), r"values from -0\.01 .*\(images \+ 1\) / 2"),
    "channels": (lambda: some_images(2, COLOR), r"\(2, 3, 4, 6\).* takes \(B, 1, 4, 6\)"),
    "size": (lambda: some_images(2, (1, 6, 4)), r"\(2, 1, 6, 4\).* takes \(B, 1, 4, 6\)"),
    "no channels": (lambda: some_images(1, GRAY)[0, 0], r"\(4, 6\).* takes \(B, 1, 4, 6\)"),
    "integers": (lambda: torch.zeros(1, *GRAY, dtype=torch.uint8), r"torch.uint8.*images.float"),
    "8-bit floats": (
        lambda: torch.zeros(1, *GRAY).to(torch.float8_e4m3fn),
        r"torch.float8_e4m3fn; give float",
    ),
    "float array": (lambda: np.zeros((4, 6)), r"float64; give uint8 .* or a float tensor"),
    "wide array": (lambda: np.zeros((4, 6), np.int64), r"int64; give uint8 in 0\.\.255"),
    "channels first": (lambda: pixels(2, 1, 4, 6), r"\(2, 1, 4, 6\).*channels last, of 4x6"),
    "array size": (lambda: pixels(6, 4), r"array of shape \(6, 4\); .* of 4x6 pixels"),
    "array axes": (lambda: pixels(6), r"array of shape \(6,\); give HW, NHW, HWC or NHWC"),
    "many axes": (lambda: pixels(1, 1, 4, 6, 1), r"\(1, 1, 4, 6, 1\); give HW, NHW"),
    "color array": (lambda: pixels(4, 6, 3), r"\(4, 6, 3\); give HW.* and 1 channels"),
    "empty list": (list, r"empty list; give at least one image"),
    "list in list": (lambda: [pixels(4, 6), []], r"empty list; give at least one image"),
    "empty batch": (lambda: torch.zeros(0, *GRAY), r"empty batch; give at least one image"),
    "empty array": (lambda: pixels(0, 4, 6), r"empty batch; give at least one image"),
    "no pixels": (lambda: Image.new("L", (0, 0)), r"\(0, 0\); give one that has pixels"),
    "unknown range": (lambda: Image.new("F", (6, 4)), r"mode 'F'.* scale it to 0\.\.255"),
    "unknown mode": (lambda: Image.new("La", (6, 4)), r"mode 'La': .*; convert it to 'L'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(ValueError, match=rf"^images: .*{message}"):
        to_images(make(), GRAY)


def test_color_models_refuse_gray_arrays() -> None:
    with pytest.raises(ValueError, match=r"^images: array of shape \(4, 6\); .* 3 channels"):
        to_images(pixels(4, 6), COLOR)


@pytest.mark.parametrize("bad", [None, 3, b"abc", {"image": 1}, {1, 2}, [[0.5]]])
def test_other_types_are_refused(bad: Any) -> None:
    with pytest.raises(TypeError, match=r"^images: cannot read \w+; give a float tensor"):
        to_images(bad, GRAY)


def test_one_bad_image_in_a_list_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        to_images([some_images(1, GRAY), put(float("nan"))], GRAY)


@pytest.mark.parametrize("kind", [str, Path])
def test_missing_files_are_named(kind, tmp_path: Path) -> None:
    path = tmp_path / "missing.png"
    with pytest.raises(FileNotFoundError, match=r"^images: .*missing\.png does not exist; give"):
        to_images(kind(path), GRAY)


def test_folders_are_not_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^images: .* is a folder; .*image_files"):
        to_images(tmp_path, GRAY)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", encoded(Image.fromarray(pixels(64, 64)))[:2000]]
)
def test_broken_files_are_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^images: .*broken\.png is not a readable image: "):
        to_images(path, GRAY)


def test_truncated_pil_images_are_refused() -> None:
    """Pillow opens a file lazily: it breaks only when its pixels are needed."""
    lazy = Image.open(BytesIO(encoded(Image.fromarray(pixels(64, 64)))[:2000]))
    with pytest.raises(ValueError, match=r"^images: PIL image of mode 'L': .*truncated"):
        to_images(lazy, GRAY)


def test_huge_images_are_refused(tmp_path: Path, monkeypatch) -> None:
    """Pillow's error about decompression bombs is neither an OSError nor a ValueError."""
    Image.fromarray(pixels(64, 64)).save(tmp_path / "bomb.png")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(ValueError, match=r"^images: .*bomb\.png is not .* decompression bomb"):
            to_images(tmp_path / "bomb.png", GRAY)
    monkeypatch.setattr(rdc.image_files, "MOST_PIXELS", 4095)
    with pytest.raises(ValueError, match=r"bomb\.png is .*: 64 x 64 pixels are more than 4,095"):
        to_images(tmp_path / "bomb.png", GRAY)
    lazy = Image.open(tmp_path / "bomb.png")
    with lazy, pytest.raises(ValueError, match=r"PIL image of mode 'L': 64 x 64 pixels are more"):
        to_images(lazy, GRAY)


def test_the_pixel_limit_bounds_memory(tmp_path: Path) -> None:
    """A tiny file that asks for 200 MB is refused before it is decoded."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 8200, 8200, 8, 2, 0, 0, 0)
    start = encoded(photo())[:8] + struct.pack(">I", 13) + header
    content = start + struct.pack(">I", zlib.crc32(header)) + encoded(photo())[33:]
    (tmp_path / "large.png").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"8200 x 8200 pixels are more than 67,108,864: make"):
        to_images(tmp_path / "large.png", COLOR, resize=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    """Opening a pipe would wait for its writer for ever."""
    path = tmp_path / "image.png"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(path))
    assert image_files(tmp_path) == [path]
    with pytest.raises(ValueError, match=r"image\.png is not a readable image: not a regular file"):
        to_images(path, GRAY)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images") / "damaged"


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["png", "gif", "tiff"]),
    position=st.integers(0, 10**6),
    value=st.integers(0, 255),
    kept=st.integers(1, 10**6),
)
def test_damaged_files_are_read_or_refused(
    scratch: Path, kind: str, position: int, value: int, kept: int
) -> None:
    """Wrong bytes give our own errors only, for every fault that they cause in the decoder."""
    content = bytearray(encoded(Image.fromarray(pixels(4, 6, 3)), kind))
    content[position % len(content)] = value
    scratch.write_bytes(bytes(content[:kept]))
    try:
        images = to_images(scratch, COLOR)
    except ValueError as error:
        assert str(error).startswith("images: ")
    else:
        check_images(images, COLOR)


def test_image_files_below_a_folder(tmp_path: Path) -> None:
    names = ["b.png", "a.JPG", "deep/er/c.tiff", "notes.txt", "d.png.bak"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert found == ["a.JPG", "b.png", "deep/er/c.tiff"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", ".hidden.png", ".thumbnails/b.png", "deep/.x/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert image_files(tmp_path) == [tmp_path / "a.png"]


def test_links_are_followed(tmp_path: Path) -> None:
    """Those that lead nowhere are listed too, and refused when they are read."""
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(pixels(4, 6)).save(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "file.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "in" / "lost.png").symlink_to(tmp_path / "nowhere")
    found = image_files(tmp_path / "in")
    names = [path.relative_to(tmp_path / "in").as_posix() for path in found]
    assert names == ["again/b.png", "file.png", "folder/b.png", "lost.png"]
    assert to_images(found[:3], GRAY).shape == (3, *GRAY)
    with pytest.raises(FileNotFoundError, match=r"lost\.png does not exist"):
        to_images(found[3], GRAY)


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"deep/up is a link to a folder that it is in, .*; rem"):
        image_files(tmp_path)


def test_image_files_takes_one_file(tmp_path: Path) -> None:
    assert image_files(tmp_path / "x.dat") == [tmp_path / "x.dat"]


def test_image_files_refuses_a_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"^images: no image below the folder .*\.png"):
        image_files(tmp_path)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_transparent_shows_white(channels: int) -> None:
    """A black stroke on a transparent page is black on white, not black on black."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.putpixel((2, 3), (0, 0, 0, 255))
    expected = torch.ones(1, channels, 8, 8)
    expected[:, :, 3, 2] = 0
    assert torch.equal(to_images(image, (channels, 8, 8)), expected)


def test_arrays_in_place_of_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match=r"images: ndarray; give a torch\.Tensor"):
        check_form(np.zeros((1, *GRAY), np.float32), GRAY)  # type: ignore[arg-type]
