"""Settings of a certification, and of the program `certify`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evaluation.certification.bounds import (
    FixedTest,
    SequentialTest,
    anytime_interval,
    lower_bound,
    probability_of,
    radius_of,
)
from evaluation.defense_config import DefenseConfig
from rdc.choices import Split
from rdc.config import require

SamplingMethod = Literal["sequential", "fixed"]
SELECTION: dict[SamplingMethod, int] = {"sequential": 20, "fixed": 100}


@dataclass(frozen=True, kw_only=True)
class SmoothingConfig:
    """Randomized smoothing of a classifier, and how its certificates are sampled."""

    sigma: float
    """standard deviation of the smoothing noise, on the [0, 1] scale of images"""
    radii: tuple[float, ...] | None = None
    """L2 radii on the [0, 1] scale; by default 0, sigma / 2 and sigma. The sequential test stops
    when all of them are decided"""
    method: SamplingMethod = "sequential"
    """"sequential": as few samples as it takes to decide about every radius (Voracek, NeurIPS
    2024); "fixed": the same number for every image (Cohen et al., ICML 2019)"""
    samples: int = 1000
    """samples of each image that estimate its radius; for the sequential test the most"""
    selection: int | None = None
    """further samples that choose the class whose radius is estimated: by default 20 before the
    sequential test, and the published 100 otherwise"""
    alpha: float = 0.001
    """largest probability that the certificate of an image is wrong"""
    seed: int = 0
    """seed of the noise"""

    def __post_init__(self) -> None:
        require(self)  # types, before values are compared
        require(
            self,
            sigma=(self.sigma > 0, "positive"),
            radii=(self.radii is None or (len(self.radii) > 0 and min(self.radii) >= 0),
                   "None, or one or more that are 0 or positive"),
            samples=(self.samples >= 1, "at least 1"),
            selection=(self.selection is None or self.selection >= 1, "None, or at least 1"),
            alpha=(0 < self.alpha < 0.5, "between 0 and 0.5"),
            seed=(self.seed >= 0, "0 or more"),
        )  # fmt: skip
        if self.largest_radius < max(self.levels):
            raise ValueError(
                f"samples={self.samples}: too few for the radius {max(self.levels):g}. If all of "
                f"them agree, they certify {max(self.largest_radius, 0):.4g} at alpha={self.alpha} "
                "and no more; give more samples, a larger sigma, or smaller radii"
            )

    @property
    def levels(self) -> tuple[float, ...]:
        """The radii in increasing order."""
        return (
            (0.0, self.sigma / 2, self.sigma) if self.radii is None else tuple(sorted(self.radii))
        )

    @property
    def selection_samples(self) -> int:
        return SELECTION[self.method] if self.selection is None else self.selection

    @property
    def planned_samples(self) -> int:
        """The most that f classifies for one image."""
        return self.selection_samples + self.samples

    @property
    def largest_radius(self) -> float:
        """The radius of an image whose samples all agree."""
        count = self.samples
        if self.method == "fixed":
            bound = lower_bound(count, count, alpha=self.alpha)
        else:
            bound = anytime_interval(count, count, alpha=self.alpha).low
        return radius_of(bound, sigma=self.sigma)

    def build_test(self) -> FixedTest | SequentialTest:
        """A new test for one image."""
        if self.method == "fixed":
            return FixedTest(self.samples, alpha=self.alpha)
        probabilities = [probability_of(radius, sigma=self.sigma) for radius in self.levels]
        return SequentialTest(probabilities, alpha=self.alpha, most=self.samples)


@dataclass(frozen=True, kw_only=True)
class CertifyConfig(SmoothingConfig):
    """One defense, certified on some images: `evaluation.certify`."""

    out: Path
    """folder for a record of each image and `certificates.json`; the same command continues"""
    defense: DefenseConfig = field(default_factory=DefenseConfig)
    """the classifier f that is smoothed; "epndc", "apndc" and "denoised" are made for noisy
    images, others meet noise that they may not know"""
    data: str = "digits"
    """"digits", "cifar10-samples", a folder split/class/*.png, a CIFAR Python archive, an .npz or a
    folder of parquet"""
    split: Split = "test"
    images: int = 100
    """number of images, from the start of the split"""
    resize: bool = False
    """convert images of another shape to the model's: gray or color, resized, cropped"""
    max_rows: int = 256
    """noisy images in the networks at once"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self,
            images=(self.images >= 1, "at least 1"),
            max_rows=(self.max_rows >= 1, "at least 1"),
        )

    @property
    def smoothing(self) -> dict:
        """The fields of `SmoothingConfig`."""
        return {name: getattr(self, name) for name in SmoothingConfig.__dataclass_fields__}
