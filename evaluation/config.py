"""Settings of the programs `evaluate`, `report` and `demo`."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from evaluation.defense_config import DefenseConfig
from evaluation.eps import Budget, written
from evaluation.suite_config import Kind, SuiteConfig, Threat
from rdc.choices import Split
from rdc.config import require

GIVEN = "given"
"""Name of data that a caller of `evaluation.evaluate` holds."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Attacks and their budgets, for any model and any images."""

    attack: Kind = "adaptive"
    """"adaptive": every gradient, and attacks without one; "standard": AutoAttack's ensemble, on
    the frozen draw; "stochastic": the same, and an ensemble on means over draws"""
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    norm: Threat = "linf"
    eps: tuple[Budget, ...] = (0.1,)
    """budgets on the [0, 1] scale, such as 0.1 or 8/255; for stadv, of the displacement, half
    of the image's side being 1; for corruption, its strength from 1 to 5"""
    eval_draws: int = 20
    """draws that judge an image where the suite has several; 2 or more"""
    check_images: int = 8
    """number of images for the automatic checks; 0 for no checks"""
    batch_size: int = 50
    max_rows: int = 256
    """rows in the networks at once; halved where memory is short"""
    seed: int = 0
    """seed of the attacks' random starts and draws, and of the checks"""

    def __post_init__(self) -> None:
        require(self)  # types, before values are compared
        require(
            self,
            eval_draws=(self.eval_draws >= 2, "at least 2; a single one is the frozen draw"),
            check_images=(self.check_images >= 0, "0 or more"),
            batch_size=(self.batch_size >= 1, "at least 1"),
            max_rows=(self.max_rows >= 1, "at least 1"),
            seed=(self.seed >= 0, "0 or more"),
        )
        given = " ".join(map(written, self.eps))
        # Budgets have six digits in the names of files.
        different = {f"{eps:g}" for eps in self.eps}
        if not self.eps or min(self.eps) <= 0 or len(different) < len(self.eps):
            raise ValueError(
                f"eps={given or ()}: give one or more different positive budgets; clean images are "
                "measured anyway"
            )
        if self.norm == "linf" and max(self.eps) > 1:
            raise ValueError(
                f"eps={written(max(self.eps))}: images are in [0, 1], where a budget of 1 allows "
                f"everything; for 0 to 255 give {written(max(self.eps))}/255"
            )
        if self.norm == "corruption" and not {1, 2, 3, 4, 5}.issuperset(self.eps):
            raise ValueError(f"eps={given}: strengths of corruptions are 1 to 5")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Options):
    """One defense, one norm, some budgets."""

    out: Path
    """folder for the records, the attacked images and `summary.json`"""
    defense: DefenseConfig = field(default_factory=DefenseConfig)
    transfer: str | None = None
    """model on which "adaptive" makes images for a transfer attack: an image classifier by packaged
    name, directory, hub id or file.py:function; or a kind of defense on the same networks, such as
    gdmp, or on another denoiser, such as gdmp:NAME; by default a packaged classifier of the data
    that is not the defense's own"""
    data: str = "digits"
    """"digits", "cifar10-samples", a folder split/class/*.png, a CIFAR Python archive, an .npz or a
    folder of parquet"""
    split: Split = "test"
    images: int = 100
    """number of images, from the start of the split"""
    resize: bool = False
    """convert images of another shape to the model's: gray or color, resized, cropped"""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, images=(self.images >= 1, "at least 1"))


@dataclass(frozen=True)
class ReportConfig:
    """Checks, accuracies with intervals, paired tests, pictures and provenance of evaluations.

    Writes `index.html`, which holds everything and loads nothing, and its figures as PNG files.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """results of `evaluation.evaluate`, or folders of several"""
    out: Path | None = None
    """folder to write; by default `report` in the folder, or in the one that several share"""


@dataclass(frozen=True)
class DemoConfig:
    """Clean and robust accuracy (PGD, L-infinity, every gradient, noise known to the attacker)."""

    model: str = "digits"
    """RDC: packaged name, directory or hub id"""
    cnn: str | None = None
    """image classifier to compare with; by default the packaged "<model>-cnn", or digits-cnn"""
    data: str = "digits"
    """"digits", "cifar10-samples", a folder split/class/*.png, a CIFAR Python archive, an .npz or a
    folder of parquet"""
    images: int = 16
    """number of images, from the start of the split"""
    split: Split = "test"
    eps: tuple[Budget, ...] = (0.2,)
    """budgets on the [0, 1] scale"""
    steps: int = 10
    optimal: bool = False
    """add the exact denoiser of the training images, with and without maximization"""
    seed: int = 0
    picture: Path | None = Path("demo.png")
    json: Path | None = None
    """write the numbers and where they come from to this file"""

    def __post_init__(self) -> None:
        require(
            self,
            images=(self.images >= 1, "at least 1"),
            eps=(bool(self.eps) and min(self.eps) > 0, "one or more positive budgets"),
            steps=(self.steps >= 1, "at least 1"),
            seed=(self.seed >= 0, "0 or more"),
        )
