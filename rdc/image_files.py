"""Search for image files below folders, and their decoding within limits."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_PIXELS = 2**26
"""Pixels of an image file, 8192 x 8192: decoding one takes less than 1 GB of memory."""


def read_image(path: Path) -> Image.Image:
    """The decoded image of a file, with its EXIF orientation applied.

    Raises:
        ValueError, FileNotFoundError: the file is missing, broken or no regular file.
    """
    if path.is_dir():
        raise ValueError(f"images: {path} is a folder; give its files: rdc.image_files.image_files")
    try:
        check_regular(path)
        return load(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"images: {path} does not exist; give the path of an image file"
        ) from None
    # Pillow's decoders raise many kinds of errors for broken files, even IndexError.
    except Exception as error:
        raise ValueError(
            f"images: {path} is not a readable image: {error}; give an image file"
        ) from error


def load(file: Path | IO[bytes]) -> Image.Image:
    """The image of a file with at most `MOST_PIXELS`, with Pillow's errors."""
    with Image.open(file) as image:
        check_pixels(image)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image


def check_pixels(image: Image.Image) -> None:
    """Refuse an image of more than `MOST_PIXELS`, before any of them is decoded."""
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}: make it smaller"
        )


def check_regular(path: Path) -> None:
    """Refuse pipes, devices and folders: reading them may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("not a regular file")


def image_files(path: Path) -> list[Path]:
    """The file itself, or all image files below a folder in sorted order."""
    return list(iterate_images(path))


def iterate_images(path: Path) -> Iterator[Path]:
    """The file itself, or the image files below a folder one by one, in sorted order.

    Only the names of a single folder are in memory at a time. Files and folders whose name begins
    with a dot are left out; links are followed.

    Raises:
        FileNotFoundError: there is no image.
        ValueError: a link leads to a folder around it.
    """
    if not path.is_dir():
        yield path
        return
    found = False
    for file in _below(path):
        found = True
        yield file
    if not found:
        raise FileNotFoundError(
            f"images: no image below the folder {path}; give one with {', '.join(SUFFIXES)} files"
        )


def listing(path: Path, root: Path) -> dict[str, Any]:
    """The name of a file below `root`, and its size and time, to notice another of that name."""
    found = path.stat() if path.exists() else path.lstat()  # a link may lead nowhere
    name = path.relative_to(root).as_posix()
    return {"image": name, "bytes": found.st_size, "modified_ns": found.st_mtime_ns}


def _below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """The image files of a folder and of all below it; `above` are the real paths around it."""
    if (real := os.path.realpath(folder)) in above:
        raise ValueError(
            f"images: {folder} is a link to a folder that it is in, {real}; remove the link"
        )
    with os.scandir(folder) as entries:
        # Names alone are kept, and one of a folder where it stands among those of files.
        names = sorted((each.name, each.is_dir()) for each in entries if each.name[0] != ".")
    for name, is_folder in names:
        file = folder / name
        if is_folder:
            yield from _below(file, above | {real})
        elif file.suffix.lower() in SUFFIXES:
            yield file
