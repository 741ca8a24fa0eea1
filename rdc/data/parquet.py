"""Folders of parquet files as Hugging Face has them: a column of images, one of labels."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdc.choices import Split
from rdc.data.dataset import SPLITS, hold_out, origin, same_classes
from rdc.data.decode import BATCH, Batch, Encoded

IMAGES = ("image", "img")
LABELS = ("label", "fine_label")


def parquet_files(root: Path) -> list[Path]:
    """All parquet files of the folder or, when it has none, of its folder `data`, sorted."""
    return sorted(root.glob("*.parquet")) or sorted(root.glob("data/*.parquet"))


def read_parquet(root: Path, split: Split) -> Encoded:
    """The images of a split by file and row; class names are those that the files declare."""
    shards = _shards(root)
    wanted, shared = origin(split, shards, root, "{0}-00000-of-00001.parquet")
    class_names = same_classes({name: _classes(files[0]) for name, files in shards.items()}, root)
    files = shards[wanted]
    labels = np.concatenate([_labels(file, len(class_names)) for file in files])
    if not len(labels):
        raise ValueError(f"data: {files[0]} has no rows; give files with images")
    rows = hold_out(len(labels), split) if shared else np.arange(len(labels))
    keep = np.isin(np.arange(len(labels)), rows)
    return Encoded(torch.from_numpy(labels[rows]), class_names, partial(_batches, files, keep))


def _shards(root: Path) -> dict[Split, list[Path]]:
    """The files of every split; numbered ones must be complete."""
    shards: dict[Split, list[Path]] = {}
    for path in parquet_files(root):
        name = re.split(r"[-.]", path.name)[0]
        if name in SPLITS:
            shards.setdefault(SPLITS[name], []).append(path)
    for files in shards.values():
        total = re.search(r"-of-(\d+)", files[0].name)
        if total and len(files) != int(total[1]):
            raise FileNotFoundError(
                f"data: {files[0].name} is one of {int(total[1])} files, but {files[0].parent} "
                f"has {len(files)} of that split; give exactly those"
            )
    return shards


def _classes(file: Path) -> tuple[str, ...]:
    with _reader(file) as reader:
        schema = reader.schema_arrow
    column = _column(file, schema.names, LABELS)
    try:
        described = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(described["info"]["features"][column]["names"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"data: {file} does not say what its classes are called; write it with Hugging "
            f"Face's datasets, {column!r} being a ClassLabel"
        ) from None


def _labels(file: Path, classes: int) -> np.ndarray:
    """(N,) int64 in 0..classes - 1."""
    with _reader(file) as reader:
        column = _column(file, reader.schema_arrow.names, LABELS)
        labels = reader.read(columns=[column])[column].to_numpy()
    # A missing label makes the column one of floats, with NaN.
    bad = [label for label in np.unique(labels) if label not in range(classes)]
    if bad:
        raise ValueError(
            f"data: {file} has the label {bad[0]}, which is none of its {classes} classes; give "
            "files whose images are all labeled"
        )
    return labels.astype(np.int64)


def _batches(files: list[Path], keep: np.ndarray) -> Iterator[Batch]:
    end = 0
    for file in files:
        with _reader(file) as reader:
            column, first = _column(file, reader.schema_arrow.names, IMAGES), end
            for batch in reader.iter_batches(BATCH, columns=[column]):
                start, end = end, end + len(batch)
                rows = np.flatnonzero(keep[start:end])
                if len(rows):
                    names = [f"{file.name} row {start - first + row}" for row in rows]
                    yield partial(_read, names, batch.column(column).take(rows))


def _read(names: list[str], images: Any) -> list[tuple[str, bytes]]:
    """Names and bytes from an arrow array of {"bytes": ..., "path": ...}."""
    contents = [
        image["bytes"] if isinstance(image, dict) else image for image in images.to_pylist()
    ]
    for name, content in zip(names, contents, strict=True):
        if not isinstance(content, bytes):
            raise ValueError(f"data: {name} has no image; give files that contain their images")
    return list(zip(names, contents, strict=True))


def _column(file: Path, names: list[str], known: tuple[str, ...]) -> str:
    for name in known:
        if name in names:
            return name
    raise ValueError(f"data: {file} has the columns {names}; one must be called {known}")


@contextmanager
def _reader(file: Path) -> Iterator[Any]:
    """An open `pyarrow.parquet.ParquetFile`; pyarrow's own errors name the file."""
    try:
        # An optional dependency.
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ImportError(
            "data: reading parquet files needs pyarrow: pip install pyarrow"
        ) from None
    try:
        with parquet.ParquetFile(file) as reader:
            yield reader
    except (OSError, ArrowException) as error:
        raise ValueError(
            f"data: {file} is not a readable parquet file: {error}; download it again"
        ) from error
