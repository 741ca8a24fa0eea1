"""Records of a run as JSON lines that survive kills and power cuts."""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rdc.config import parse_json
from rdc.runs.atomic import flush_entry
from rdc.runs.settings import lock_settings

LONGEST = 2**26
"""Bytes of a record's line; a longer one is neither written nor read."""
Record = dict[str, Any]
T = TypeVar("T")


class Entry(NamedTuple):
    """A record and its place: a file, and the offset of its line in bytes."""

    record: Record
    file: Path
    offset: int


class RunLog:
    """The records of a run in `folder`, one file per process; a kill loses at most the last line.

    The folder belongs to `settings` and `inputs`; one that was begun with others is refused (see
    `rdc.runs.settings.lock_settings`). Every process of a run makes one of these, and all see what
    was recorded before, by however many processes.
    """

    def __init__(
        self,
        folder: Path,
        settings: Any,
        *,
        inputs: Mapping[str, str] | None = None,
        process: int = 0,
        beside: Collection[str] = (),
        free: Collection[str] = (),
    ) -> None:
        self.folder = folder
        self.file = folder / f"records-{process:03d}.jsonl"
        lock_settings(folder, settings, inputs=inputs, beside=beside, free=free)
        if self.file.exists():
            cut_torn_line(self.file)

    def append(self, records: Iterable[Record]) -> None:
        """Add records that belong together; a kill leaves all of them or the first ones.

        Raises:
            ValueError: a record is longer than `LONGEST` bytes; nothing is written.
        """
        lines = [json.dumps(record) + "\n" for record in records]
        longest = max(map(len, lines), default=0)
        if longest > LONGEST:
            raise ValueError(f"a record of {longest} bytes: at most {LONGEST}; use smaller batches")
        new = not self.file.exists()
        with self.file.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        if new:
            flush_entry(self.folder)

    def entries(self) -> Iterator[Entry]:
        return entries(self.folder)

    def read(self, parse: Callable[[Record], T]) -> Iterator[T]:
        """All records as `parse` gives them (see `read_all`)."""
        return read_all(self.folder, parse)


def read_all(folder: Path, parse: Callable[[Record], T]) -> Iterator[T]:
    """All complete records of all processes, as `parse` gives them.

    Raises:
        ValueError: names the file and the place of a record that `parse` refuses.
    """
    for entry in entries(folder):
        try:
            yield parse(entry.record)
        except (KeyError, TypeError, ValueError) as error:
            why = str(error) if isinstance(error, ValueError) else repr(error)
            raise ValueError(
                f"{entry.file}, byte {entry.offset}: {why}; the record was damaged or written by "
                "another version: start again with a new folder"
            ) from error


def entries(folder: Path) -> Iterator[Entry]:
    """All complete records of all processes, in the order of their files, one at a time.

    Raises ValueError, with the file and the place, for a complete line that is no JSON object.
    """
    for file in sorted(folder.glob("records-*.jsonl")):
        offset = 0
        with file.open("rb") as lines:
            while line := lines.readline(LONGEST):
                if line.endswith(b"\n"):
                    yield Entry(read_record(line, file, offset), file, offset)
                elif len(line) == LONGEST:
                    raise ValueError(
                        f"{file}: the line at byte {offset} is longer than {LONGEST} bytes; it is "
                        "no record of a run: remove the file, and its records are made again"
                    )
                offset += len(line)


def read_record(line: bytes, file: Path, offset: int) -> Record:
    """The record of a line of `file` that begins at byte `offset`."""
    where = f"{file}: the line at byte {offset}"
    record = parse_json(line, where)
    if not isinstance(record, dict):
        raise ValueError(f"{where} must be a JSON object; remove it, and its record is made again")
    return record


def cut_torn_line(file: Path) -> None:
    """Remove an incomplete last line, which a killed process left."""
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
