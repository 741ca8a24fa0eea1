"""What a run has done so far: JSON lines that survive whatever ends the process."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

SETTINGS = "settings.json"
Record = dict[str, Any]


class Entry(NamedTuple):
    """A record and where it stands: a file, and the bytes before its line."""

    record: Record
    file: Path
    offset: int


class RunLog:
    """The records of a run in `folder`, one file per process; a kill loses at most the last line.

    The folder belongs to `settings`: a run with others is refused. Every process of a run makes one
    of these, and all see what was recorded before, by however many processes.
    """

    def __init__(self, folder: Path, settings: Record, *, process: int = 0) -> None:
        self.folder = folder
        self.file = folder / f"records-{process:03d}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        keep_settings(folder, settings)
        if self.file.exists():
            cut_torn_line(self.file)

    def append(self, records: Iterable[Record]) -> None:
        """Add records that belong together; a kill leaves all of them or the first ones."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> Iterator[Entry]:
        """`entries` of the folder."""
        return entries(self.folder)

    def read(self) -> Iterator[Record]:
        """The records of `entries`."""
        return (entry.record for entry in self.entries())


def entries(folder: Path) -> Iterator[Entry]:
    """All complete records of all processes, in the order of their files, one at a time."""
    for file in sorted(folder.glob("records-*.jsonl")):
        offset = 0
        with file.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield Entry(json.loads(line), file, offset)
                offset += len(line)


def keep_settings(folder: Path, settings: Record) -> None:
    """Write the settings of a run into its folder; refuse a folder that has others.

    Raises:
        ValueError: names every setting that differs, before and now.
    """
    settings = json.loads(json.dumps(settings, default=str))
    known = folder / SETTINGS
    if not known.exists():
        part = folder / f".{SETTINGS}.{os.getpid()}"
        part.write_text(json.dumps(settings, indent=2) + "\n")
        part.replace(known)
        return
    changed = list(differences(json.loads(known.read_text()), settings))
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings: {'; '.join(changed)}; give the same ones "
            "to continue it, or another folder"
        )


def differences(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """Every value that differs, by its place in nested settings: "a.b: 1 -> 2"."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            place = f"{name}.{key}" if name else key
            yield from differences(before.get(key), now.get(key), place)
    elif before != now:
        yield f"{name}: {before!r} -> {now!r}"


def cut_torn_line(file: Path) -> None:
    """Remove what a killed process left of its last line."""
    with file.open("r+b") as opened:
        end = opened.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65_536)
            opened.seek(start)
            newline = opened.read(end - start).rfind(b"\n")
            if newline >= 0:
                opened.truncate(start + newline + 1)
                return
            end = start
        opened.truncate(0)
