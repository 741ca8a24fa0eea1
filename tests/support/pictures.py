"""Image files for tests: random ones, and folders of them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

Content = Image.Image | np.ndarray | bytes


def noise(seed: int, *shape: int) -> np.ndarray:
    """Random bytes; of (H, W, 3) by default."""
    return np.random.default_rng(seed).integers(0, 256, shape or (6, 4, 3), dtype=np.uint8)


def save(root: Path, files: Mapping[str, Content]) -> Path:
    """Files below `root` by name: images, their pixels, or plain bytes."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            image = Image.fromarray(content) if isinstance(content, np.ndarray) else content
            image.save(path)
    return root


def tree(root: Path, per_class: int, splits: tuple[str, ...] = ("train",)) -> Path:
    """split/cat/0.png and so on, of the classes cat and dog."""
    names = [f"{s}/{c}/{i}.png" for s in splits for c in ("cat", "dog") for i in range(per_class)]
    return save(root, {name: noise(seed) for seed, name in enumerate(names)})
