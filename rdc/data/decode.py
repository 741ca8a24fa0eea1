"""Encoded images to bytes: many at a time, all of one shape."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from rdc.data.dataset import Shape
from rdc.images import fitted, load

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
    """What images become. With `like`, the name of one of this size, none may be resized."""

    shape: Shape
    like: str | None = None


def target_of(encoded: Encoded, shape: Shape | None) -> Target:
    """`shape`, or that of the first image."""
    if shape is not None:
        return Target(shape)
    name, content = next(encoded.batches())()[0]
    return Target(_own_shape(_open(name, content)), like=name)


def decoded(encoded: Encoded, target: Target) -> Iterator[np.ndarray]:
    """The images in batches (B, C, H, W) uint8."""
    return in_threads(partial(_decode_batch, target=target), encoded.batches())


def decode(name: str, content: bytes, target: Target) -> np.ndarray:
    """(C, H, W) uint8 of an image file's content; errors call it `name`."""
    image = _open(name, content)
    channels, height, width = target.shape
    if target.like is not None:
        own = _own_shape(image)
        if own[1:] != (height, width) or own[0] > channels:
            raise ValueError(
                f"source: {target.like} is {target.shape} (channels, height, width), but {name} "
                f"is {own}; give the one that all shall have: shape=(C, H, W)"
            )
    try:
        return fitted(image, target.shape).transpose(2, 0, 1)
    except ValueError as error:
        raise ValueError(f"source: {name}: {error}") from error


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
    """The image, read completely and turned as its camera was held."""
    try:
        return load(BytesIO(content))
    # Pillow's decoders raise whatever a broken file makes them trip over, down to IndexError.
    except Exception as error:
        raise ValueError(
            f"source: {name} is not a readable image: {error}; replace or remove it"
        ) from error


def _own_shape(image: Image.Image) -> Shape:
    gray = image.mode in ("1", "L", "LA") or image.mode.startswith("I;16")
    return 1 if gray else 3, image.height, image.width
