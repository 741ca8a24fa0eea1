"""Validation and conversion of user input to images (B, C, H, W) in [0, 1]."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rdc.image_files import check_pixels, read_image

Shape = tuple[int, int, int]

CHANNELS = (1, 2, 3, 4)
"""Last axes of arrays that are colors: gray, gray and alpha, RGB, RGB and alpha."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Gray of red, green and blue (ITU-R BT.601), as Pillow has it."""


def to_x(images: Tensor) -> Tensor:
    """[0, 1] to [-1, 1], the scale of the diffusion model."""
    return 2 * images - 1


def to_pixels(x: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], the scale of images."""
    return (x + 1) / 2


def check_kind(images: Tensor) -> None:
    """Refuse what is no tensor, and nested, sparse and quantized ones."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images: {type(images).__name__}; give a torch.Tensor")
    if images.is_nested or images.layout != torch.strided or images.is_quantized:
        kind = "nested" if images.is_nested else str(images.layout).removeprefix("torch.")
        raise ValueError(f"images: a {kind} tensor; give an ordinary, dense one")


def check_form(images: Tensor, shape: Shape) -> Tensor:
    """The same tensor, if it is (B, C, H, W) and floating-point.

    Values are not looked at, which would make the host wait for a GPU.

    Raises:
        ValueError: the tensor has another shape, kind or type.
    """
    check_kind(images)
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        raise ValueError(
            f"images: shape {tuple(images.shape)}, but this model takes (B, {shape[0]}, "
            f"{shape[1]}, {shape[2]}): B images, channels first"
        )
    check_floats(images)
    return images


def check_floats(images: Tensor) -> None:
    """Refuse integers, and floats of 8 bits, which do no arithmetic."""
    if not images.is_floating_point() or images.dtype.itemsize == 1:
        raise ValueError(
            f"images: dtype {images.dtype}; give float images in [0, 1] (for uint8: images.float() "
            "/ 255)"
        )


def check_precision(images: Tensor, weights: torch.dtype) -> None:
    """Refuse images of another type than a network's weights, unless autocast converts them."""
    if images.dtype == weights:
        return
    kinds = (images.dtype, weights)
    if torch.float64 in kinds or not torch.is_autocast_enabled(images.device.type):
        raise ValueError(
            f"images: {images.dtype}, but the model has weights of {weights}; give "
            f"images.to({weights})"
        )


def check_images(images: Tensor, shape: Shape) -> Tensor:
    """The same tensor, if it is (B, C, H, W), floating-point and in [0, 1].

    Raises:
        ValueError: says what is wrong and what to give.
    """
    check_form(images, shape)
    if images.is_meta:
        raise ValueError("images: a tensor on 'meta' has no pixels; give one with data")
    if len(images) == 0:
        raise ValueError("images: empty batch; give at least one image")
    low, high = images.min().item(), images.max().item()
    if not torch.isfinite(images).all():
        raise ValueError("images: NaN or infinity in the pixels; give numbers in [0, 1]")
    if low < 0 or high > 1:
        raise ValueError(
            f"images: values from {low:.4g} to {high:.4g}, expected [0, 1] (for 0..255 divide by "
            "255; for [-1, 1] use (images + 1) / 2; for mean and std see rdc.Normalize)"
        )
    return images


@dataclass(frozen=True)
class Converted:
    """Images (B, C, H, W) in [0, 1]; `changes` has a text for each one, "" if nothing changed."""

    images: Tensor
    changes: tuple[str, ...]


def to_images(images: Any, shape: Shape, *, resize: bool = False) -> Tensor:
    """The images of `convert_images`, (B, C, H, W) in [0, 1] of `shape` (C, H, W)."""
    return convert_images(images, shape, resize=resize).images


def convert_images(images: Any, shape: Shape, *, resize: bool = False) -> Converted:
    """Images (B, C, H, W) in [0, 1] of `shape` (C, H, W) from tensors, arrays, files or PIL images.

    images: a float tensor NCHW (or CHW) in [0, 1]; a uint8 array HW, NHW, HWC or NHWC; a PIL image;
        the path of an image file; or a list of these.
    resize: convert images of another shape: to the model's channels, then resized until they cover
        H x W, then cropped at their center. Without it they are refused, except files and PIL
        images whose colors the model has and that are not smaller than its images. With it, arrays
        may also have an alpha channel, the last one.

    The EXIF orientation of files and PIL images is applied; transparent pixels become white.

    Raises:
        ValueError, TypeError, FileNotFoundError: says what is wrong and what to give.
    """
    if isinstance(images, Tensor):
        return _from_tensor(images, shape, resize)
    if isinstance(images, np.ndarray):
        return _from_array(images, shape, resize)
    if isinstance(images, Image.Image):
        return _from_pil(_turned(images), shape, resize, "PIL image")
    if isinstance(images, str | Path):
        return _from_pil(read_image(Path(images)), shape, resize, str(images))
    if isinstance(images, Sequence):
        if len(images) == 0:
            raise ValueError("images: empty list; give at least one image")
        return _joined([convert_images(image, shape, resize=resize) for image in images])
    raise TypeError(
        f"images: cannot read {type(images).__name__}; give a float tensor in [0, 1], a uint8 "
        "numpy array, a PIL image, a path, or a list of these"
    )


def _joined(parts: list[Converted]) -> Converted:
    images = torch.cat([part.images for part in parts])
    return Converted(images, tuple(change for part in parts for change in part.changes))


def _from_tensor(images: Tensor, shape: Shape, resize: bool) -> Converted:
    check_kind(images)
    images = images[None] if images.ndim == 3 else images
    own = tuple(images.shape[1:])
    if resize and len(own) == 3 and own != shape and own[0] in (1, 3) and len(images):
        check_images(images, own)
        pixels = [_fitted_floats(image, shape) for image in images.float().cpu().numpy()]
        images = torch.from_numpy(np.stack(pixels)).to(images)
        return Converted(images, (_change(own, shape),) * len(images))
    return Converted(check_images(images, shape), ("",) * len(images))


def _fitted_floats(image: np.ndarray, shape: Shape) -> np.ndarray:
    """(C, H, W) float32 in [0, 1] to `shape`, as `fitted` does it with bytes."""
    channels, height, width = shape
    if len(image) != channels:
        image = np.tensordot(LUMA, image, 1)[None] if channels == 1 else np.repeat(image, 3, 0)
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in image]
    fitted = [ImageOps.fit(plane, (width, height), Image.Resampling.LANCZOS) for plane in planes]
    return np.stack([np.asarray(plane) for plane in fitted]).clip(0, 1)


def _from_array(array: np.ndarray, shape: Shape, resize: bool) -> Converted:
    if array.dtype != np.uint8:
        raise ValueError(
            f"images: numpy array of {array.dtype}; give uint8 in 0..255, or a float tensor NCHW "
            "in [0, 1] (torch.from_numpy(array).float())"
        )
    given, (channels, height, width) = array.shape, shape
    # Three axes are gray images where they have the model's size, or cannot be one with channels.
    sized, other = channels == 1 and given[1:] == (height, width), given[-1] not in CHANNELS
    if array.ndim == 3 and resize and other and not sized and given[0] == 3:
        raise ValueError(
            f"images: array of shape {given}; give a color image as HWC (array.transpose(1, 2, "
            "0)), or three gray images as NHWC (array[..., None])"
        )
    if array.ndim == 2 or (array.ndim == 3 and (sized or (resize and other))):
        array = array[..., None]
    if array.ndim == 3:
        array = array[None]
    own = (array.shape[3], *array.shape[1:3]) if array.ndim == 4 else None
    if resize and own and own != shape and own[0] in CHANNELS and len(array):
        parts = [Image.fromarray(image.squeeze(2) if own[0] == 1 else image) for image in array]
        return _joined([_from_pil(part, shape, resize, "array") for part in parts])
    if own != shape:
        raise ValueError(
            f"images: array of shape {given}; give HW, NHW, HWC or NHWC, channels last, of "
            f"{height}x{width} pixels and {channels} channels"
        )
    images = torch.from_numpy(array.copy()).permute(0, 3, 1, 2).float() / 255
    return Converted(check_images(images, shape), ("",) * len(images))


def _from_pil(image: Image.Image, shape: Shape, resize: bool, name: str) -> Converted:
    if 0 in image.size:
        raise ValueError(f"images: PIL image of size {image.size}; give one that has pixels")
    own, plain = own_shape(image), in_mode(image, "L" if shape[0] == 1 else "RGB")
    large = own[1] >= shape[1] and own[2] >= shape[2]
    if not resize and not (large and keeps_color(image, shape)):
        raise ValueError(
            f"images: {name} is {spelled(own)}, but this model takes {spelled(shape)} (channels x "
            "height x width); give one of that shape, or resize=True (--resize) to convert it"
        )
    pixels = torch.from_numpy(fitted(plain, shape).copy()).permute(2, 0, 1)[None]
    return Converted(pixels.float() / 255, ("" if own == shape else _change(own, shape),))


def is_lossless(image: Image.Image, shape: Shape) -> bool:
    """True for an image of `shape`, or of other channels alone if no color is lost."""
    return own_shape(image)[1:] == shape[1:] and keeps_color(image, shape)


def keeps_color(image: Image.Image, shape: Shape) -> bool:
    """True unless the image has colors and `shape` (C, H, W) is gray."""
    if shape[0] != 1 or own_shape(image)[0] == 1:
        return True
    color = np.asarray(in_mode(image, "RGB"))
    return bool((color == color[..., :1]).all())


def own_shape(image: Image.Image) -> Shape:
    """(C, H, W) of a PIL image: one channel where it is gray, three otherwise."""
    gray = image.mode in ("1", "L", "LA") or image.mode.startswith("I;16")
    return 1 if gray else 3, image.height, image.width


def spelled(shape: tuple[int, ...]) -> str:
    """A shape as text: 3x32x32."""
    return "x".join(map(str, shape))


def _change(own: tuple[int, ...], shape: Shape) -> str:
    """The conversion from one shape to another, in words."""
    steps = [] if own[0] == shape[0] else ["to gray" if shape[0] == 1 else "gray to color"]
    if own[1:] != shape[1:]:
        steps.append("resized")
        if own[1] * shape[2] != own[2] * shape[1]:
            steps.append("cropped at the center")
    return f"{spelled(own)} converted to {spelled(shape)}: {', '.join(steps)}"


def _turned(image: Image.Image) -> Image.Image:
    """A copy of a PIL image with its EXIF orientation applied."""
    try:
        check_pixels(image)
        return ImageOps.exif_transpose(image)
    # Pillow reads what it opened only now.
    except Exception as error:
        raise ValueError(
            f"images: PIL image of mode {image.mode!r}: {error}; give one that can be read"
        ) from error


def fitted(image: Image.Image, shape: Shape) -> np.ndarray:
    """(H, W, C) uint8 of `shape` (C, H, W): resized until it covers H x W, cropped at its center.

    Training, evaluation and classification share this, so that all see the same pixels.
    """
    channels, height, width = shape
    image = in_mode(image, "L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(height, width, channels)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image as "L" or "RGB": transparency on white, 16 bits rounded to 8."""
    if image.mode == mode and not image.has_transparency_data:
        return image
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
