"""Settings of the program `sweep`, and the defenses and attacks that it has by default."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from evaluation.config import EvaluateConfig
from evaluation.defense_config import GENERATIVE, METHODS, DefenseConfig
from evaluation.eps import Budget
from evaluation.suite_config import SuiteConfig, Threat

Name = Literal[
    "cnn", "trades", "diffpure", "gdmp", "contrastive", "agdm", "maximization", "diffusion", "rdc"
]

# The purifiers as docs/purification.md chose them on validation digits, but for one copy of each
# image in place of four. GDMP's weight of 5 belongs to a reference batch of 1, and stands for 100
# times as much in the unit of its preset.
BACK = {"process": "sde", "t_star": 0.1, "steps": 10, "rounds": 1}
DEFENSES: dict[Name, DefenseConfig] = {
    "cnn": DefenseConfig("classifier"),
    "trades": DefenseConfig("classifier", classifier="digits-trades"),
    "diffpure": DefenseConfig("diffpure", **BACK),
    "gdmp": DefenseConfig("gdmp", weight=5 * 100, **BACK),
    "contrastive": DefenseConfig("contrastive", weight=16, **BACK),
    "agdm": DefenseConfig("agdm", weight=0.1, **BACK),
    "maximization": DefenseConfig("maximization"),
    "diffusion": DefenseConfig("diffusion"),
    "rdc": DefenseConfig("rdc"),
}
# Of the adaptive suite what found most on the first digits, one attack for each gradient, and what
# asks for none: all of it takes three times as long.
SUITE = SuiteConfig(
    steps=10,
    targets=1,
    queries=20,
    eot_samples=3,
    only=(
        *("exact/apgd-margin", "exact/apgd-t", "bpda/apgd-margin", "classifier/apgd-margin"),
        *("mean/exact/apgd-margin", "transfer/apgd-margin", "square", "random"),
        *("exact/stadv", "bpda/stadv", "classifier/stadv", "mean/exact/stadv", "transfer/stadv"),
    ),
)


@dataclass(frozen=True)
class SweepConfig:
    """Defenses times threats; 64 digits take 35 minutes on two threads of one CPU core."""

    out: Path = Path("results/digits")
    """each evaluation goes to `<out>/<defense>-<norm>`, the table to `table.md`"""
    defenses: tuple[Name, ...] = get_args(Name)
    """"trades" is the adversarially trained CNN, "maximization" likelihood maximization in front of
    the CNN, "diffusion" the diffusion classifier"""
    norms: tuple[Threat, ...] = ("linf", "l2", "stadv", "corruption")
    linf: tuple[Budget, ...] = (0.1, 0.2)
    l2: tuple[Budget, ...] = (0.75,)
    stadv: tuple[Budget, ...] = (0.05,)
    """largest displacements; half of the image's side is 1"""
    corruption: tuple[Budget, ...] = (3.0,)
    """strengths of the common corruptions, 1 to 5"""
    images: int = 16
    """number of images, from the start of the split"""
    split: Literal["test", "validation"] = "test"
    data: str = "digits"
    """data set; another needs its own models, and its purifiers are as published for CIFAR-10"""
    model: str = "digits"
    """denoiser and RDC: packaged name, directory or hub id, like the next two"""
    classifier: str = "digits-cnn"
    """image classifier of "cnn", and behind the purifiers"""
    trades: str = "digits-trades"
    """image classifier of "trades", which also guides AGDM"""
    purifier_steps: int | None = None
    """steps of each round, in place of the purifiers' own"""
    suite: SuiteConfig = field(default_factory=lambda: SUITE)
    eval_draws: int = 5
    """draws that judge an image where the defense draws"""
    check_images: int = 4
    """number of images for the automatic checks of each defense under the first of the norms; all
    norms have the checks on records"""
    batch_size: int = 64
    max_rows: int = 256
    """rows in the networks at once"""
    reference: Name | None = None
    """the defense that p-values compare with; by default the best other one under each threat"""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("defenses", "norms"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"--{name} {values}: give one or more, each once")
        if self.reference is not None and self.reference not in self.defenses:
            raise ValueError(f"--reference {self.reference}: must be among --defenses")

    def evaluations(self) -> Iterator[tuple[Name, EvaluateConfig]]:
        """All pairs, in an order that every process knows."""
        for name in self.defenses:
            for norm in self.norms:
                # Corruptions are no attacks: no pattern chooses among them, none is transferred.
                corrupted = norm == "corruption"
                suite = replace(self.suite, only=()) if corrupted else self.suite
                yield name, EvaluateConfig(
                    out=self.out / f"{name}-{norm}", defense=self.defense(name), suite=suite,
                    transfer=None if corrupted else self.transfer(name), data=self.data,
                    split=self.split, images=self.images, norm=norm,
                    eps=getattr(self, norm), eval_draws=self.eval_draws,
                    check_images=self.check_images if norm == self.norms[0] else 0,
                    batch_size=self.batch_size, max_rows=self.max_rows, seed=self.seed,
                )  # fmt: skip

    def defense(self, name: Name) -> DefenseConfig:
        """A defense on the models of this sweep."""
        chosen = DEFENSES[name]
        if self.data != "digits":
            chosen = DefenseConfig(chosen.kind)
        if self.purifier_steps is not None and chosen.kind in METHODS:
            chosen = replace(chosen, steps=self.purifier_steps)
        ordinary = self.trades if name == "trades" else self.classifier
        return replace(chosen, model=self.model, classifier=ordinary, auxiliary=self.trades)

    def transfer(self, name: Name) -> str | None:
        """The classifier of a transfer attack, not the defense's own; of digits a packaged one."""
        if self.data == "digits":
            return None
        without = DEFENSES[name].kind in GENERATIVE or name == "trades"
        return self.classifier if without else self.trades
