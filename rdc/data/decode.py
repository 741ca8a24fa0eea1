"""Decoding of image files in parallel, to arrays of one shape."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rdc.image_files import load
from rdc.images import Shape, fitted, is_lossless, own_shape

In = TypeVar("In")
Out = TypeVar("Out")

# Names and contents of some images. Called in a thread: what takes long is done there.
Batch = Callable[[], list[tuple[str, bytes]]]

BATCH = 64


@dataclass(frozen=True)
class Encoded:
    """Images as they are stored, in a fixed order: labels (N,) int64, and batches of all N."""

    labels: Tensor
    class_names: tuple[str, ...]
    batches: Callable[[], Iterator[Batch]]


@dataclass(frozen=True)
class Target:
    """The shape that all images get; without `resize`, others are refused.

    `like` names the image whose shape it is, where none was asked for.
    """

    shape: Shape
    resize: bool = False
    like: str | None = None


def target_of(encoded: Encoded, shape: Shape | None, *, resize: bool = False) -> Target:
    """`shape`, or that of the first image."""
    if shape is not None:
        return Target(shape, resize)
    name, content = next(encoded.batches())()[0]
    return Target(own_shape(_open(name, content)), resize, like=name)


def decoded(encoded: Encoded, target: Target) -> Iterator[np.ndarray]:
    """The images in batches (B, C, H, W) uint8."""
    return in_threads(partial(_decode_batch, target=target), encoded.batches())


def decode(name: str, content: bytes, target: Target) -> np.ndarray:
    """(C, H, W) uint8 of an image file's content; errors call it `name`."""
    image = _open(name, content)
    try:
        own, fits = own_shape(image), target.resize or is_lossless(image, target.shape)
        pixels = fitted(image, target.shape) if fits else None
    except ValueError as error:
        raise ValueError(f"data: {name}: {error}") from error
    if pixels is None:
        raise ValueError(
            f"data: {target.like or 'shape'} is {target.shape} (channels, height, width), but "
            f"{name} is {own}; give the shape that all shall have, shape=(C, H, W), and "
            "resize=True (--resize) to convert the others"
        )
    return pixels.transpose(2, 0, 1)


def in_threads(work: Callable[[In], Out], items: Iterable[In]) -> Iterator[Out]:
    """Results in the order of the items, of which only a few are held at a time."""
    workers = os.cpu_count() or 1
    pending: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _decode_batch(batch: Batch, target: Target) -> np.ndarray:
    return np.stack([decode(name, content, target) for name, content in batch()])


def _open(name: str, content: bytes) -> Image.Image:
    """The image, decoded and with its EXIF orientation applied; errors call it `name`."""
    try:
        return load(BytesIO(content))
    # Pillow's decoders raise many kinds of errors for broken files, even IndexError.
    except Exception as error:
        # Pillow's own text would name the object that holds the content.
        why = "of no known format" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(
            f"data: {name} is not a readable image: {why}; replace or remove it"
        ) from error
