"""What a run has found so far: one JSON line per image and attack, appended as it goes."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SETTINGS = "settings.json"
Record = dict[str, Any]


class Records:
    """The records of a run in `folder`, one file per process; a killed run loses at most one batch.

    The folder belongs to `settings`: another run is refused. Every process of a run makes one of
    these, and all of them see what was recorded before, by however many processes.
    """

    def __init__(self, folder: Path, settings: Record, *, process: int = 0) -> None:
        self.folder = folder
        self.file = folder / f"records-{process:03d}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._check(json.loads(json.dumps(settings, default=str)))
        if self.file.exists():
            cut_torn_line(self.file)

    def _check(self, settings: Record) -> None:
        known = self.folder / SETTINGS
        if not known.exists():
            part = known.with_suffix(f".{os.getpid()}")
            part.write_text(json.dumps(settings, indent=2) + "\n")
            part.replace(known)
            return
        before = json.loads(known.read_text())
        changed = [
            f"{name}: {before.get(name)!r} -> {settings.get(name)!r}"
            for name in sorted({*before, *settings})
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise ValueError(
                f"--out {self.folder} holds a run with other settings ({'; '.join(changed)}); "
                "give the same ones to continue it, or another folder"
            )

    def read(self) -> list[Record]:
        return read(self.folder)

    def append(self, records: Iterable[Record]) -> None:
        """Add records that belong together; a kill leaves all of them or the first ones."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def read(folder: Path) -> list[Record]:
    """All complete records of all processes in a folder, in the order of their files."""
    found = []
    for file in sorted(folder.glob("records-*.jsonl")):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        found += [json.loads(line) for line in lines if line.endswith("\n")]
    return found


def cut_torn_line(file: Path) -> None:
    """Remove what a killed process left of its last line."""
    content = file.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        with file.open("r+b") as opened:
            opened.truncate(end)
