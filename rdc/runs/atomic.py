"""Replacement of whole files and folders: a kill or a power cut leaves the old or the new one."""

import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from errno import EEXIST
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what the block makes there then replaces `path`.

    The block makes a file or a folder with files. It is flushed to the disk before it is renamed,
    and so is the folder around it, which is made where it is missing. An exception in the block
    leaves everything as it was. A killed process leaves at most a hidden `.NAME.*.part` behind.

    A file is replaced in one step. A folder is replaced in two, so that a kill between them leaves
    none of that name; its old content is then in `.NAME.*.old`.

    Raises:
        OSError: the disk is full, or a file would replace a folder, or a folder a file.
    """
    make_folder(path.parent)
    mark = f".{path.name}.{secrets.token_hex(6)}"
    part, old = path.with_name(f"{mark}.part"), path.with_name(f"{mark}.old")
    try:
        yield part
        flush(part)
        if is_folder(part) and is_folder(path):
            os.replace(path, old)
        os.replace(part, path)
        flush_entry(path.parent)
    finally:
        if is_folder(old) and not path.exists():  # stopped between the two steps
            os.replace(old, path)
        for rest in (part, old):
            remove(rest)


def require_writable(path: Path) -> None:
    """Raise OSError where no file can be made beside `path`, before the work for it begins."""
    with NamedTemporaryFile(dir=make_folder(path.parent), prefix=f".{path.name}."):
        pass


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write text (as UTF-8) or bytes to `path`, in full or not at all."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; what JSON does not know, such as a path, becomes its text."""
    write_atomically(path, json.dumps(value, indent=2, default=str) + "\n")


def replace_files(new: Path, folder: Path, *, old: Collection[str], last: str) -> None:
    """Move the files in the folder `new` to `folder`, in place of those named in `old`.

    The file `last` is removed first and put in place last: while it exists, all files in `folder`
    are the old ones or all are the new ones.
    """
    flush(new)
    names = sorted(path.name for path in new.iterdir())
    for name in [last, *(name for name in old if name not in names)]:
        remove(folder / name)
        flush_entry(folder)
    for name in sorted(names, key=lambda name: name == last):
        flush_entry(folder)
        os.replace(new / name, folder / name)
    flush_entry(folder)


def make_folder(folder: Path) -> Path:
    """Create a folder and those above it, and flush the entry of every new one to the disk."""
    if not folder.is_dir():
        if folder.exists():
            raise FileExistsError(EEXIST, "a file, not a folder; give another", str(folder))
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        flush_entry(folder.parent)
    return folder


def flush(path: Path) -> None:
    """Have the disk hold a file, or a folder and everything below it."""
    if path.is_dir():
        for entry in path.iterdir():
            flush(entry)
    flush_entry(path)


def flush_entry(path: Path) -> None:
    """Have the disk hold a file's content, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it exists."""
    if is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_folder(path: Path) -> bool:
    """True for a folder itself, False for a link to one."""
    return path.is_dir() and not path.is_symlink()
