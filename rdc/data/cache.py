"""Cache of decoded images in files that are mapped: whole or not at all, never out of date."""

import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import PIL

from rdc.data.dataset import Shape
from rdc.data.decode import Batch, Encoded, Target, decoded, in_threads, target_of
from rdc.runs.atomic import replacing

# To be raised when the same files and the same Pillow would give other pixels.
VERSION = 2


def cached_pixels(
    encoded: Encoded, shape: Shape | None, folder: Path, *, resize: bool = False
) -> np.ndarray:
    """(N, C, H, W) uint8, decoded only when `folder` does not have it yet."""
    path = folder / f"{content_key(encoded, shape, resize)}.npy"
    pixels = _mapped(path, len(encoded.labels), shape)
    if pixels is not None:
        return pixels
    target = target_of(encoded, shape, resize=resize)
    try:
        _write(path, encoded, target)
        return _map(path)
    except OSError as error:
        warnings.warn(
            f"cache: cannot keep the decoded images in {folder}: {error}; they stay in memory and "
            "will be decoded again next time; give a writable folder with space: load(..., cache=)",
            stacklevel=4,
        )
    return _in_memory(encoded, target)


def content_key(encoded: Encoded, shape: Shape | None, resize: bool) -> str:
    """SHA-256 over every image's name and content, and over all settings of the decoding."""
    digest = hashlib.sha256(f"{VERSION} {PIL.__version__} {shape} {resize}".encode())
    for part in in_threads(_digests, encoded.batches()):
        digest.update(part)
    return digest.hexdigest()


def _digests(batch: Batch) -> bytes:
    return b"".join(
        hashlib.sha256(os.fsencode(name)).digest() + hashlib.sha256(content).digest()
        for name, content in batch()
    )


def _mapped(path: Path, rows: int, shape: Shape | None) -> np.ndarray | None:
    """The file's array, or None where the file is missing, incomplete or of another kind."""
    try:
        pixels = _map(path)
        size = path.stat().st_size
    # numpy raises many kinds of errors for broken headers.
    except Exception:
        return None
    whole = size == pixels.offset + pixels.nbytes
    plain = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.flags.c_contiguous
    fits = plain and len(pixels) == rows and shape in (None, pixels.shape[1:])
    return pixels if whole and fits else None


def _map(path: Path) -> np.memmap:
    """The mapped array, writable as torch requires; changes stay in memory."""
    return np.lib.format.open_memmap(path, mode="c")


def _write(path: Path, encoded: Encoded, target: Target) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(encoded.labels), *target.shape)}
    with replacing(path) as part, part.open("xb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for pixels in decoded(encoded, target):
            file.write(pixels.tobytes())


def _in_memory(encoded: Encoded, target: Target) -> np.ndarray:
    pixels, start = np.empty((len(encoded.labels), *target.shape), np.uint8), 0
    for part in decoded(encoded, target):
        pixels[start : start + len(part)] = part
        start += len(part)
    return pixels
