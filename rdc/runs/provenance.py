"""Facts for the reader of a result: command, commit, versions, data."""

import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rdc.config import read_json
from rdc.data import Dataset
from rdc.runs.fingerprints import data_fingerprint

PACKAGES = ("torch", "accelerate", "numpy")


FACTS = ("command", "commit", "data_fingerprint", "python", "packages")


def provenance(data: Dataset, *, finished: Path | None = None) -> dict[str, Any]:
    """Facts that a reader needs to repeat a run; `commit` is None outside a git checkout.

    `finished`: the JSON file of results that were complete before this start. They keep the facts
    that the file has.
    """
    try:
        found = read_json(finished) if finished is not None and finished.exists() else {}
        return {name: found[name] for name in FACTS}
    except (KeyError, TypeError, ValueError):
        pass  # no facts, or no JSON
    program = getattr(sys.modules["__main__"], "__spec__", None)
    start = ["python", "-m", program.name] if program else [Path(sys.argv[0]).name]
    return {
        "command": shlex.join([*start, *sys.argv[1:]]),
        "commit": commit(),
        "data_fingerprint": data_fingerprint(data),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def commit() -> str | None:
    """The checkout's commit, with "+" where tracked files differ from it."""

    def git(*arguments: str) -> str:
        here = Path(__file__).parent
        try:
            done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True)
        except FileNotFoundError:
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    # An environment may lie in a repository of somebody else's code.
    head = git("rev-parse", "HEAD") if git("ls-files", Path(__file__).name) else ""
    return (head + ("+" if git("status", "--porcelain", "-uno") else "")) or None
