"""Image folders: split/class/image.png, or class/image.png without splits."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from rdc.choices import Split
from rdc.data.dataset import SPLITS, hold_out, origin, same_classes
from rdc.data.decode import BATCH, Batch, Encoded
from rdc.image_files import check_regular, image_files


def read_folder(root: Path, split: Split) -> Encoded:
    """The images of a split in turns: the first of every class, the second of every class, ...

    Any prefix of it is class-balanced as far as possible. A class's images are sorted by name, and
    labels are places among the sorted class names. A folder without splits has the split "all".
    """
    folders = _split_folders(root) or {"all": root}
    wanted, shared = origin(split, folders, root, "{0}/class/images")
    classes = {name: _class_names(folder) for name, folder in folders.items()}
    class_names = same_classes(classes, root)
    files = [image_files(folders[wanted] / name) for name in class_names]
    turns = sorted((turn, label) for label, own in enumerate(files) for turn in range(len(own)))
    paths = [files[label][turn] for turn, label in turns]
    labels = torch.tensor([label for _, label in turns])
    if shared:
        rows = hold_out(len(paths), split)
        paths, labels = [paths[row] for row in rows], labels[rows]
    return Encoded(labels, class_names, partial(_batches, root, paths))


def _split_folders(root: Path) -> dict[Split, Path]:
    folders: dict[Split, Path] = {}
    for name, split in SPLITS.items():
        if not (root / name).is_dir():
            continue
        if split in folders:
            raise ValueError(
                f"data: {root} has {folders[split].name} and {name}, both of which mean {split}; "
                "keep one"
            )
        folders[split] = root / name
    return folders


def _class_names(folder: Path) -> tuple[str, ...]:
    """Sorted names of the subfolders, without hidden ones such as .ipynb_checkpoints."""
    names = (path.name for path in folder.iterdir() if path.is_dir())
    classes = tuple(sorted(name for name in names if not name.startswith(".")))
    for name in classes:
        if not name.isprintable():
            raise ValueError(
                f"data: {folder} has a class folder {name!r}: a name of control characters or "
                "not of UTF-8; rename it"
            )
    if not classes:
        raise ValueError(f"data: {folder} has no folder of a class; give {folder}/class/images")
    return classes


def _batches(root: Path, paths: list[Path]) -> Iterator[Batch]:
    for start in range(0, len(paths), BATCH):
        yield partial(_read, root, paths[start : start + BATCH])


def _read(root: Path, paths: list[Path]) -> list[tuple[str, bytes]]:
    return [(path.relative_to(root).as_posix(), _content(path)) for path in paths]


def _content(path: Path) -> bytes:
    try:
        check_regular(path)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"data: {path} cannot be read: {why}; replace or remove it") from error
