"""Records: the answers of a defense for one image under one attack, as a run writes them."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.results.fields import (
    COUNT,
    FINITE,
    NUMBER,
    SHARE,
    TEXT,
    list_of,
    optional,
    require_fields,
)
from rdc.runs.run_log import read_all

CLEAN = "none"
"""Name of the attack on images as they are, whose `eps` is 0."""


@dataclass(frozen=True)
class Record:
    """The answers of a defense for one image under one attack.

    `image`: number of the image in the data; `label`: its class.
    `eps`, `attack`: budget on the [0, 1] scale and name of the attack; 0 and "none" without one.
    `frozen`, `frozen_confidence`: class under the frozen draw, and its softmax probability.
    `predictions`, `confidences`: the same under draws that no attack has seen, one each; empty for
        a defense that draws nothing.
    `linf`, `l2`: norms of the change, in pixels of [0, 1].
    `seconds`: time of the attack for this image.
    `log_likelihood`: of the image to the defense's diffusion model; see `evaluation.detection`.
        None for a defense without one, and in files that are older than the field.
    `frozen_8_bit`: class under the frozen draw of the image rounded to 8 bits, as files store it;
        None in older files.
    `broken_by`, `broken_at`: name and budget of an attack that had broken the image before, within
        this budget or a smaller one, so that this one did not try it; the other fields are those
        of that attack. None where this attack was tried, and `broken_at` in older files.
    """

    image: int
    label: int
    eps: float
    attack: str
    frozen: int
    frozen_confidence: float
    predictions: tuple[int, ...]
    confidences: tuple[float, ...]
    linf: float
    l2: float
    seconds: float
    log_likelihood: float | None = None
    frozen_8_bit: int | None = None
    broken_by: str | None = None
    broken_at: float | None = None

    @property
    def right(self) -> bool:
        """True if the frozen draw gives the label."""
        return self.frozen == self.label

    @property
    def share(self) -> float:
        """Share of the unseen draws that give the label, in [0, 1]."""
        return self.predictions.count(self.label) / len(self.predictions)

    @property
    def fell(self) -> bool:
        """True if the frozen draw is wrong, or all unseen draws are."""
        return not self.right or bool(self.predictions and not self.share)

    def not_tried(self, eps: float, attack: str) -> "Record":
        """The record of a later attack or a larger budget, with nothing left to win here."""
        return replace(
            self, eps=eps, attack=attack, seconds=0.0, broken_by=self.attack, broken_at=self.eps
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "Record":
        """The record that `to_json` wrote.

        Raises:
            ValueError: names the first field that is missing, unknown or of another kind.
        """
        if isinstance(values, dict):
            values = {**dict.fromkeys(LATER), **values}
        require_fields(values, KINDS, "record")
        if len(values["predictions"]) != len(values["confidences"]):
            raise ValueError("record: predictions and confidences must be equally many")
        lists = {name: tuple(values[name]) for name in ("predictions", "confidences")}
        return cls(**{**values, **lists})


KINDS = {
    "image": COUNT, "label": COUNT, "eps": NUMBER, "attack": TEXT,
    "frozen": COUNT, "frozen_confidence": SHARE,
    "predictions": list_of(COUNT), "confidences": list_of(SHARE),
    "linf": NUMBER, "l2": NUMBER, "seconds": NUMBER, "log_likelihood": optional(FINITE),
    "frozen_8_bit": optional(COUNT), "broken_by": optional(TEXT), "broken_at": optional(NUMBER),
}  # fmt: skip
"""Values that each field may hold in a file."""
LATER = ("log_likelihood", "frozen_8_bit", "broken_by", "broken_at")
"""Fields that older files lack."""


def read_records(folder: Path) -> list[Record]:
    """The records of a run's folder, each once.

    Raises:
        ValueError: names the file and the place of a line that is no record.
    """
    return unique(read_all(folder, Record.from_json))


def unique(records: Iterable[Record]) -> list[Record]:
    """The last of records of the same image, budget and attack, which a killed run can repeat."""
    return list({(r.eps, r.attack, r.image): r for r in records}.values())


def worst(records: Iterable[Record], harm: Callable[[Record], float]) -> dict[int, Record]:
    """The record of most harm for each image, the first of equals; by image, ascending."""
    found: dict[int, tuple[float, Record]] = {}
    for record in records:
        value = harm(record)
        if record.image not in found or value > found[record.image][0]:
            found[record.image] = value, record
    return {image: found[image][1] for image in sorted(found)}
