"""Reading of images to purify, and writing of purified ones: files, folders and arrays."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rdc.config import parse_json
from rdc.image_files import image_files, listing, read_image
from rdc.images import check_images, to_images
from rdc.runs.atomic import replacing, require_writable, write_atomically

LISTED = "purification-files.jsonl"
"""File beside a folder's purified images: the size and time of each image that was given."""


def destinations(given: Path, out: Path) -> dict[Path, Path]:
    """Map every image file of `given` to the path of its purified image in `out`.

    `given` is a file or a folder, whose sub-folders are kept; every image becomes a PNG.
    """
    if not given.exists():
        raise FileNotFoundError(f"given={given} does not exist; give an image, a folder or a .npy")
    if not given.is_dir():
        check_file(out, ".png", "an image file", given)
        return {given: out}
    if out.exists() and not out.is_dir():
        raise ValueError(f"out={out} is a file, but {given} is a folder; give a folder")
    if out.resolve().is_relative_to(given.resolve()):
        raise ValueError(f"out={out} lies in {given}, whose images it would join; give another")
    outputs: dict[Path, Path] = {}
    sources: dict[Path, Path] = {}
    for file in image_files(given):
        target = (out / file.relative_to(given)).with_suffix(".png")
        if target in sources:
            raise ValueError(
                f"given: {sources[target]} and {file} would both become {target}; rename one"
            )
        outputs[file], sources[target] = target, file
    return outputs


def remove_stale(
    outputs: dict[Path, Path], given: Path, out: Path, *, batches: list[list[Path]]
) -> None:
    """Remove the images in `out` whose files have changed since `out` listed them.

    A file has changed if its name, size or time has, or the files of its batch; `batches` has
    those whose images see each other. The list is then renewed; it keeps files that are gone, which
    may come back with another content.
    """
    listed = out / LISTED
    lines = listed.read_bytes().splitlines() if listed.exists() else []
    rows = [parse_json(line, str(listed)) for line in lines]
    before = {(out / row["image"]).with_suffix(".png"): row for row in rows}
    now = {target: listing(file, given) for file, target in outputs.items()}
    for files in batches:
        names = [file.relative_to(given).as_posix() for file in files]
        for file in files:
            now[outputs[file]]["batch"] = sha256("\n".join(names).encode()).hexdigest()
    for target, row in now.items():
        # Lists of earlier versions have no batches.
        if {**row, **before.get(target, {})} != row:
            target.unlink(missing_ok=True)
    rows = (before | now).values()
    write_atomically(listed, "".join(json.dumps(row) + "\n" for row in rows))


def check_file(out: Path, suffix: str, what: str, given: Path) -> None:
    """Refuse an output that cannot become such a file or be written, and `given` itself."""
    if out.is_dir():
        raise ValueError(f"out={out} is a folder, but {what} was given; give a {suffix} file")
    if out.suffix != suffix:
        raise ValueError(f"out={out}: {what} becomes a {suffix} file; give such a name")
    if out.exists() and out.samefile(given):
        raise ValueError(f"out={out} is the given file, which it would replace; give another name")
    require_writable(out)


def refuse_replacement(picture: Path, given: Path, out: Path) -> None:
    """Refuse a picture of the purification that would replace or join the images."""
    if any(picture.resolve().is_relative_to(images.resolve()) for images in (given, out)):
        raise ValueError(
            f"picture={picture} is among the images given or purified; give another name"
        )


def read_file(file: Path, channels: int, *, resize: bool = False) -> Tensor:
    """An image file at its own size, (1, C, H, W) in [0, 1]; with `resize`, color becomes gray."""
    image = read_image(file)
    try:
        return to_images(image, (channels, image.height, image.width), resize=resize)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def write_file(out: Path, image: Tensor) -> None:
    """An image (1, C, H, W) in [0, 1] as PNG, there in full or not at all."""
    pixels = to_uint8(image)[0]
    with replacing(out) as part:
        picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        picture.save(part, format="PNG")


def read_array(given: Path, out: Path, channels: int) -> Tensor:
    """The images of a .npy file (N, C, H, W) in [0, 1]; `out` must be able to take them."""
    if not given.is_file():
        raise FileNotFoundError(f"given={given} is not a file; give an image, a folder or a .npy")
    check_file(out, ".npy", "an array", given)
    array = read_npy(given, "given")
    expected = f"(N, H, W, {channels})" + (" or (N, H, W)" if channels == 1 else "")
    if array.ndim == 3 and channels == 1:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] != channels:
        raise ValueError(f"given={given}: shape {array.shape}; this denoiser takes {expected}")
    if array.size == 0:
        raise ValueError(f"given={given}: no images, shape {array.shape}; give at least one")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"given={given}: {array.dtype}; give uint8, or floats in [0, 1]")
    images = torch.from_numpy(array.astype(np.float32)).permute(0, 3, 1, 2)
    images = images / 255 if array.dtype == np.uint8 else images
    return check_images(images, (channels, *array.shape[1:3]))


def write_array(out: Path, images: Tensor, *, like: Path) -> None:
    """Images (N, C, H, W) in [0, 1] with the shape and type of the array `like`."""
    original = read_npy(like, "given")
    floats = images.permute(0, 2, 3, 1).numpy()
    array = to_uint8(images) if original.dtype == np.uint8 else floats.astype(original.dtype)
    with replacing(out) as part, part.open("wb") as file:
        np.save(file, array.reshape(original.shape))


def read_npy(file: Path, argument: str) -> np.ndarray:
    """A .npy array; `argument` is its name in errors."""
    try:
        return np.load(file, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError) as error:
        raise ValueError(f"{argument}={file} is not a complete .npy array: {error}") from error


def to_uint8(images: Tensor) -> np.ndarray:
    """(N, C, H, W) in [0, 1] to the nearest of 0..255, (N, H, W, C)."""
    return (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
