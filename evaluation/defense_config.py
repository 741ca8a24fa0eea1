"""Defenses by name, and their settings."""

from dataclasses import dataclass
from typing import Literal, get_args

from purification.config import ProcessName
from purification.presets import Method
from rdc.config import require

NoisedKind = Literal["epndc", "apndc", "denoised"]
Kind = Literal["classifier", "module", "diffusion", "rdc", "maximization", Method]
METHODS = get_args(Method)
KINDS = get_args(Kind)
NOISED = get_args(NoisedKind)
"""Kinds that need the noise `sigma` of a smoothed classifier."""
GENERATIVE = ("diffusion", "rdc", "epndc", "apndc")
"""Kinds that have no image classifier."""
PURIFIER = ("weight", "process", "t_star", "steps", "rounds")
"""Settings of a purifier alone."""
VOTING = (*METHODS, "rdc", "maximization")
"""Kinds that can take the mean over `copies`."""


@dataclass(frozen=True)
class DefenseConfig:
    """`kind`: an ordinary "classifier"; a "module" of your own; the "diffusion" classifier; "rdc";
    likelihood "maximization" in front of the classifier; or one of the purifiers in front of it.
    For images with noise `sigma`, the diffusion classifiers "epndc" and "apndc", and the classifier
    behind one denoising pass, "denoised" (see `evaluation.certification.classifiers`).

    `factory`: of kind "module"; "package.module:function" or "path/to/file.py:function", where the
        function takes no arguments and returns a module from [0, 1] images to logits.
    `model`: denoiser or RDC; `classifier`, `auxiliary` (guides AGDM): image classifiers; each a
        packaged name, directory or hub id, classifiers also a factory like the above.
    `preset`, `weight`, `process`, `t_star`, `steps`, `rounds`: of a purifier; what is given beside
        the preset replaces its value.
    `copies`: purified copies per image, whose mean probability counts.
    `sigma`: smooth the defense by Gaussian noise of this standard deviation, on the [0, 1] scale of
        images; its answer is then the mean probability over `noisy_copies` of the image.
    """

    kind: Literal[Kind, NoisedKind] = "rdc"
    factory: str | None = None
    model: str = "digits"
    classifier: str = "digits-cnn"
    auxiliary: str = "digits-trades"
    preset: str = "cifar10-linf"
    weight: float | None = None
    process: ProcessName | None = None
    t_star: float | None = None
    steps: int | None = None
    rounds: int | None = None
    copies: int = 1
    sigma: float | None = None
    noisy_copies: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self,
            copies=(self.copies >= 1 and (self.copies == 1 or self.kind in VOTING),
                    f"at least 1, and 1 for kind={self.kind!r} unless that is one of {VOTING}"),
            sigma=(self.sigma is None or self.sigma > 0, "None or positive"),
            noisy_copies=(self.noisy_copies >= 1, "at least 1"),
            factory=(
                (self.kind == "module") == (self.factory is not None)
                and (self.factory is None or is_factory(self.factory)),
                "module:function or file.py:function with kind='module', and None without",
            ),
            seed=(self.seed >= 0, "0 or more"),
            **{
                name: (self.kind in METHODS or getattr(self, name) is None,
                       f"None for kind={self.kind!r}: purifiers have it, {METHODS}")
                for name in PURIFIER
            },
        )  # fmt: skip


def is_factory(name: str) -> bool:
    """True for the form place:function, which no packaged name, folder or hub id has."""
    place, colon, function = name.rpartition(":")
    return bool(colon) and function.isidentifier() and len(place) > 1
