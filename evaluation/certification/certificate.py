"""Certificates of images, and the certified accuracy of many."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from evaluation.certification.config import SmoothingConfig
from evaluation.results.compare import markdown
from evaluation.results.fields import COUNT, FINITE, NUMBER, optional, require_fields
from evaluation.results.metrics import Accuracy
from evaluation.results.statistics import clopper_pearson

KINDS = {
    "image": COUNT, "label": COUNT, "selected": COUNT, "radius": optional(NUMBER),
    "upper": optional(FINITE), "hits": COUNT, "samples": COUNT, "passes": COUNT, "seconds": NUMBER,
}  # fmt: skip


@dataclass(frozen=True)
class Certificate:
    """The radius proven for g at one image, with probability at least 1 - alpha.

    `selected`: the class whose radius was estimated, g's answer where `radius` is not None.
    `radius`: within this L2 distance on [0, 1] the answer stays the same; None is an abstention.
    `upper`: with probability 1 - alpha, the selected class's own is too small for this radius and
        larger ones to be certified by any number of samples; None where samples are fixed in
        number, which say nothing about it. Negative where the class has no majority.
    `hits` of `samples` estimated the radius; `passes` counts all images that f has seen for it,
        those of the selection and those drawn in vain after the last decision included.
    """

    image: int
    label: int
    selected: int
    radius: float | None
    upper: float | None
    hits: int
    samples: int
    passes: int
    seconds: float

    @classmethod
    def from_json(cls, found: Any) -> "Certificate":
        """The certificate of a record; ValueError where its values are of another kind."""
        require_fields(found, KINDS, "certificate")
        return cls(**found)

    def certified(self, radius: float) -> bool:
        """True if the label is proven to be g's answer within `radius`."""
        proven = self.radius is not None and self.radius >= radius
        return proven and self.selected == self.label

    def undecided(self, radius: float) -> bool:
        """True if more samples may still certify `radius` or rule it out."""
        low = -1.0 if self.radius is None else self.radius
        return self.upper is not None and low < radius < self.upper


@dataclass(frozen=True)
class Certification:
    """The certificates of a set of images."""

    config: SmoothingConfig
    certificates: Sequence[Certificate]

    def certified_accuracy(self, radius: float) -> float:
        """Share of images with the right class and a radius of at least `radius`.

        Abstentions count as wrong (Cohen et al. 2019, section 4).
        """
        return mean(each.certified(radius) for each in self.certificates)

    def interval(self, radius: float) -> tuple[float, float]:
        """95 % interval of the certified accuracy, over the choice of images (Clopper-Pearson)."""
        found = [each.certified(radius) for each in self.certificates]
        return clopper_pearson(sum(found), len(found))

    def undecided(self, radius: float) -> float:
        """Share of images whose sequential test ended, or gave up, before it could tell."""
        return mean(each.undecided(radius) for each in self.certificates)

    @property
    def abstained(self) -> float:
        """Share of images at which no class is proven to be g's."""
        return mean(each.radius is None for each in self.certificates)

    @property
    def passes(self) -> float:
        """Mean number of images that f has seen for one certificate."""
        return mean(each.passes for each in self.certificates)

    @property
    def seconds(self) -> float:
        """Mean seconds of one certificate."""
        return mean(each.seconds for each in self.certificates)

    def table(self) -> str:
        """Markdown: a row for each radius."""
        head = ["radius", "certified % [95 %]", "undecided %", "clean %", "abstained %",
                "n", "alpha", "passes", "seconds"]  # fmt: skip
        every = [
            f"{100 * self.certified_accuracy(0.0):.1f}", f"{100 * self.abstained:.1f}",
            f"{self.config.method} {self.config.samples}", f"{self.config.alpha:g}",
            f"{self.passes:.0f}", f"{self.seconds:.2f}",
        ]  # fmt: skip
        rows = []
        for radius in self.config.levels:
            certified = Accuracy.of([each.certified(radius) for each in self.certificates])
            undecided = (
                f"{100 * self.undecided(radius):.1f}" if self.config.method == "sequential" else "-"
            )
            rows.append([f"{radius:g}", str(certified), undecided, *every])
        return markdown(head, rows)
