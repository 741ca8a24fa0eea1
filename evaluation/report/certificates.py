"""Finished certifications, read from their folders, and the attacks on the same defense."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.report.load import CERTIFICATES, Run
from evaluation.results.fields import COUNT, NUMBER, OBJECT, SHARE, TEXT, list_of, require_fields
from evaluation.results.metrics import Accuracy
from rdc.config import read_json

FIELDS = {
    "config": OBJECT, "data_fingerprint": TEXT, "rows": list_of(OBJECT), "abstained": SHARE,
    "passes": NUMBER, "seconds": NUMBER, "images": COUNT,
}  # fmt: skip
CONFIG = {
    "defense": OBJECT, "sigma": NUMBER, "alpha": NUMBER, "samples": COUNT, "method": TEXT,
    "data": TEXT, "split": TEXT,
}  # fmt: skip
ROW = {
    "radius": NUMBER, "certified_accuracy": SHARE, "interval": list_of(SHARE), "undecided": SHARE
}  # fmt: skip


@dataclass(frozen=True)
class Certified:
    """The certified accuracies of a smoothed defense, by radius.

    `config`: the settings by name. `fingerprint`: of the images. `abstained`, `passes`, `seconds`:
    share of images, and means for one image; see `evaluation.certification`.
    """

    folder: Path
    config: dict[str, Any]
    fingerprint: str
    accuracies: dict[float, Accuracy]
    undecided: dict[float, float]
    abstained: float
    passes: float
    seconds: float

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def samples(self) -> str:
        return f"{self.config['method']} {self.config['samples']}"

    def attacked(self, runs: Iterable[Run]) -> Run | None:
        """The run that attacked the same smoothed classifier on the same images within L2 budgets.

        Certificates hold for the smoothed classifier alone, from whatever number of noisy copies
        its answers are estimated.
        """
        return next((run for run in runs if run.norm == "l2" and self._same(run)), None)

    def _same(self, run: Run) -> bool:
        ours, theirs = self.config["defense"], run.config["defense"]
        names = (ours.keys() & theirs.keys()) - {"sigma", "noisy_copies"}
        return (
            theirs.get("sigma") == self.config["sigma"]
            and all(ours[name] == theirs[name] for name in names)
            and run.provenance["data_fingerprint"] == self.fingerprint
        )


def certifications(folders: Sequence[Path]) -> list[Certified]:
    """All certifications in the folders, at any depth.

    Raises:
        ValueError: names the file, and the field and its value that are not of a certification.
    """
    files = {file.resolve() for folder in folders for file in folder.rglob(CERTIFICATES)}
    return [read(file) for file in sorted(files)]


def read(file: Path) -> Certified:
    """The certification of a `certificates.json`; errors as in `certifications`."""
    try:
        return certified(file.parent, read_json(file))
    except ValueError as error:
        raise ValueError(
            f"{file} is no certification of this version: {error}; start evaluation.certify again "
            "as before to write it anew"
        ) from error


def certified(folder: Path, found: Any) -> Certified:
    """The certification that a file's values describe."""
    require_fields(found, FIELDS, "certificates", others=True)
    require_fields(found["config"], CONFIG, "config", others=True)
    if not found["rows"]:
        raise ValueError("rows: none, of no radius")
    accuracies, undecided = {}, {}
    for row in found["rows"]:
        require_fields(row, ROW, "rows")
        if len(row["interval"]) != 2:
            raise ValueError(f"rows: interval={row['interval']} must be two numbers")
        radius, (low, high) = float(row["radius"]), row["interval"]
        accuracies[radius] = Accuracy(row["certified_accuracy"], low, high, found["images"])
        undecided[radius] = row["undecided"]
    return Certified(
        folder, found["config"], found["data_fingerprint"], dict(sorted(accuracies.items())),
        undecided, found["abstained"], found["passes"], found["seconds"],
    )  # fmt: skip
