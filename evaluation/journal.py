"""Journal of an evaluation: its records and attacked images, in a folder or in memory."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from evaluation.checks.check import Check
from evaluation.results.records import Record, read_records, unique
from rdc.config import read_json
from rdc.runs.atomic import replacing, write_json
from rdc.runs.run_log import RunLog

CHECKS = "checks.json"


class History:
    """The records so far by budget, image and attack; at first those from before a start."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._found: dict[tuple[float, int], dict[str, Record]] = {}
        self.add(records)

    def add(self, records: Iterable[Record]) -> None:
        """Add records; one of the same image, budget and attack takes the place of the former."""
        for record in records:
            self._found.setdefault((record.eps, record.image), {})[record.attack] = record

    def of(self, eps: float, rows: Sequence[int], attacks: Iterable[str]) -> list[Record]:
        """The records of some images within a budget, where there are any, attack by attack."""
        images = [self._found.get((eps, row), {}) for row in rows]
        return [image[attack] for attack in attacks for image in images if attack in image]

    def complete(self, eps: float, rows: Sequence[int], attacks: Sequence[str]) -> list[Record]:
        """The same if none of these records is missing, otherwise none."""
        found = self.of(eps, rows, attacks)
        return found if len(found) == len(rows) * len(attacks) else []


@dataclass(frozen=True)
class Kept:
    """The most harmful attacked images of a unit so far.

    `images` (B, C, H, W) in [0, 1], `attacks` the names of the attacks that made them (B),
    `purified` the same images after the defense's purifier, once all attacks are done.
    """

    images: Tensor
    attacks: tuple[str, ...]
    purified: Tensor | None = None


class MemoryJournal:
    """A journal that ends with the process; `kept` and `keep` go by the names of units."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._kept: dict[str, Kept] = {}
        self._checks: list[Check] | None = None

    def records(self) -> list[Record]:
        return unique(self._records)

    def append(self, records: Iterable[Record]) -> None:
        self._records += records

    def kept(self, name: str) -> Kept | None:
        return self._kept.get(name)

    def keep(self, name: str, kept: Kept) -> None:
        self._kept[name] = kept

    def checks(self) -> list[Check] | None:
        return self._checks

    def keep_checks(self, checks: Sequence[Check]) -> None:
        self._checks = list(checks)


class FolderJournal:
    """The same in a folder that belongs to `settings` and `inputs` (see `rdc.runs.settings`).

    Raises:
        ValueError: the folder was begun with others.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        inputs: Mapping[str, str],
        process: int = 0,
    ) -> None:
        self.folder = folder
        # A run that was killed for lack of memory can continue with fewer rows.
        self.log = RunLog(
            folder, dict(settings), inputs=inputs, process=process, free=("max_rows",)
        )

    def records(self) -> list[Record]:
        return read_records(self.folder)

    def append(self, records: Iterable[Record]) -> None:
        self.log.append([record.to_json() for record in records])

    def kept(self, name: str) -> Kept | None:
        file = images_file(self.folder, name)
        return read_kept(file) if file.exists() else None

    def keep(self, name: str, kept: Kept) -> None:
        tensors = {"images": kept.images, "purified": kept.purified}
        with replacing(images_file(self.folder, name)) as part:
            save_file(
                {k: values.cpu().contiguous() for k, values in tensors.items()
                 if values is not None},
                part, metadata={"attacks": json.dumps(kept.attacks)},
            )  # fmt: skip

    def checks(self) -> list[Check] | None:
        file = self.folder / CHECKS
        if not file.exists():
            return None
        found = read_json(file)
        if not isinstance(found, list):
            raise ValueError(f"{file} must hold a list; delete it, and its checks are made again")
        return [Check.from_json(each, str(file)) for each in found]

    def keep_checks(self, checks: Sequence[Check]) -> None:
        write_json(self.folder / CHECKS, [asdict(check) for check in checks])


Journal = MemoryJournal | FolderJournal


def images_file(folder: Path, name: str) -> Path:
    """The file of the attacked images of the unit `name` in a run's folder."""
    return folder / "images" / f"{name}.safetensors"


def read_kept(file: Path) -> Kept:
    """The attacked images of a unit, from their file."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        attacks = json.loads(opened.metadata()["attacks"])
    return Kept(tensors["images"], tuple(attacks), tensors.get("purified"))
