"""The door: whatever a user calls an image, checked and converted to [0, 1] NCHW, once."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def to_x(images: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], the scale of the diffusion model."""
    return 2 * images - 1


def to_pixels(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], the scale of images."""
    return (x + 1) / 2


def check_form(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The same tensor, or an error that says why it is not (B, C, H, W) float.

    Values are not looked at, which would make the host wait for a GPU.
    """
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"images: shape {tuple(images.shape)}, but this model takes (B, {shape[0]}, "
            f"{shape[1]}, {shape[2]}): B images, channels first"
        )
    if not images.is_floating_point():
        raise ValueError(
            f"images: dtype {images.dtype}; give float images in [0, 1] (for uint8: images.float() "
            "/ 255)"
        )
    return images


def check_images(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The same tensor, or an error that says why it is not (B, C, H, W) float in [0, 1]."""
    check_form(images, shape)
    if len(images) == 0:
        raise ValueError("images: empty batch; give at least one image")
    low, high = images.min().item(), images.max().item()
    if not torch.isfinite(images).all():
        raise ValueError("images: NaN or infinity in the pixels; give numbers in [0, 1]")
    if low < 0 or high > 1:
        raise ValueError(
            f"images: values from {low:.4g} to {high:.4g}, expected [0, 1] "
            "(for 0..255 divide by 255; for [-1, 1] use (images + 1) / 2)"
        )
    return images


def to_images(images: Any, shape: tuple[int, int, int]) -> Tensor:
    """(B, C, H, W) in [0, 1] of `shape` (C, H, W) from anything that a user calls an image.

    A float tensor NCHW (or CHW) in [0, 1]; a uint8 array HW, NHW, HWC or NHWC; a PIL image; the
    path of an image file; or a list of these. Files and PIL images become what training makes of
    them: turned as the camera was held (EXIF), converted to the model's channels, resized until
    they cover its size and cropped at their center. Tensors and arrays must have its shape.
    """
    if isinstance(images, Tensor):
        return check_images(images[None] if images.ndim == 3 else images, shape)
    if isinstance(images, np.ndarray):
        return check_images(_from_array(images, shape), shape)
    if isinstance(images, Image.Image):
        return _from_pil(_turned(images), shape)
    if isinstance(images, str | Path):
        return _from_pil(read_image(Path(images)), shape)
    if isinstance(images, Sequence):
        if len(images) == 0:
            raise ValueError("images: empty list; give at least one image")
        return torch.cat([to_images(image, shape) for image in images])
    raise TypeError(
        f"images: cannot read {type(images).__name__}; give a float tensor in [0, 1], a uint8 "
        "numpy array, a PIL image, a path, or a list of these"
    )


def read_image(path: Path) -> Image.Image:
    """An image file, read completely and turned as its camera was held."""
    if path.is_dir():
        raise ValueError(f"images: {path} is a folder; give its files: rdc.images.image_files")
    try:
        return load(path)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"images: {path} does not exist; give the path of an image file"
        ) from None
    # Pillow's decoders raise whatever a broken file makes them trip over, down to IndexError.
    except Exception as error:
        raise ValueError(
            f"images: {path} is not a readable image: {error}; give an image file"
        ) from error


def load(file: Path | IO[bytes]) -> Image.Image:
    """The same with Pillow's errors."""
    with Image.open(file) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return image


def image_files(path: Path) -> list[Path]:
    """The file itself, or all image files below a folder in sorted order."""
    return list(iterate_images(path))


def iterate_images(path: Path) -> Iterator[Path]:
    """The same one by one, with the names of a single folder in memory at a time."""
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


def _below(folder: Path) -> Iterator[Path]:
    """The image files of a folder and of all below it, but not of those behind links."""
    with os.scandir(folder) as entries:
        # Names alone are kept, and one of a folder where it stands among those of files.
        names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_folder in names:
        file = folder / name
        if is_folder:
            yield from _below(file)
        elif file.suffix.lower() in SUFFIXES and file.is_file():
            yield file


def _from_array(array: np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    if array.dtype != np.uint8:
        raise ValueError(
            f"images: numpy array of {array.dtype}; give uint8 in 0..255, or a float tensor NCHW "
            "in [0, 1] (torch.from_numpy(array).float())"
        )
    given, (channels, height, width) = array.shape, shape
    # With one channel, three axes are images; with three, they are one image with its channels.
    if array.ndim == 2 or (array.ndim == 3 and channels == 1 and given[1:] == (height, width)):
        array = array[..., None]
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[1:] != (height, width, channels):
        raise ValueError(
            f"images: array of shape {given}; give HW, NHW, HWC or NHWC, channels last, of "
            f"{height}x{width} pixels and {channels} channels"
        )
    return torch.from_numpy(array.copy()).permute(0, 3, 1, 2).float() / 255


def _from_pil(image: Image.Image, shape: tuple[int, int, int]) -> Tensor:
    if 0 in image.size:
        raise ValueError(f"images: PIL image of size {image.size}; give one that has pixels")
    return _from_array(fitted(image, shape), shape)


def _turned(image: Image.Image) -> Image.Image:
    """A PIL image as its camera was held; the user's own stays as it is."""
    try:
        return ImageOps.exif_transpose(image)
    # Pillow reads what it opened only now.
    except Exception as error:
        raise ValueError(
            f"images: PIL image of mode {image.mode!r}: {error}; give one that can be read"
        ) from error


def fitted(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """(H, W, C) uint8 of `shape` (C, H, W): resized until it covers H x W, cropped at its center.

    Training, evaluation and the door share this, so that a model sees one picture alike in all.
    """
    channels, height, width = shape
    image = convert(image, "L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(height, width, channels)


def convert(image: Image.Image, mode: str) -> Image.Image:
    try:
        if image.mode.startswith("I;16"):
            # Pillow's own conversion cuts 16-bit values off at 255.
            image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
        if image.mode == "P" or image.has_transparency_data:
            # What is transparent shows white, as it would on paper.
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode not in ("I", "F"):
            return image.convert(mode)
    except Exception as error:
        raise ValueError(
            f"images: PIL image of mode {image.mode!r}: {error}; convert it to {mode!r}"
        ) from error
    raise ValueError(
        f"images: PIL image of mode {image.mode!r}, whose range of values is unknown; "
        f"scale it to 0..255 and convert it to {mode!r}"
    )
