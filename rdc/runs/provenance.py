"""Where a result comes from: command, commit, versions, data."""

import hashlib
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rdc.data import Dataset

PACKAGES = ("torch", "accelerate", "numpy")


def provenance(data: Dataset) -> dict[str, Any]:
    """What a reader needs to repeat a run; `commit` is None outside a git checkout."""
    program = getattr(sys.modules["__main__"], "__spec__", None)
    start = f"python -m {program.name}" if program else Path(sys.argv[0]).name
    return {
        "command": " ".join([start, *sys.argv[1:]]),
        "commit": commit(),
        "data_fingerprint": fingerprint(data),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def fingerprint(data: Dataset) -> str:
    """SHA-256 over pixels and what they mean, labels and class names."""
    facts = [tuple(data.pixels.shape), data.peak, data.class_names]
    digest = hashlib.sha256(json.dumps(facts).encode())
    # In parts: pixels that are mapped from a file may be more than fits into memory.
    for part in (*data.pixels.split(1024), data.labels):
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()


def commit() -> str | None:
    """The checkout's commit, with "+" where tracked files differ from it."""

    def git(*arguments: str) -> str:
        root = Path(__file__).parents[2]
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        except FileNotFoundError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    head = git("rev-parse", "HEAD")
    return (head + ("+" if git("status", "--porcelain", "-uno") else "")) or None
