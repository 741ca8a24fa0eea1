"""Settings of the diffusion classifier, of likelihood maximization and of RDC."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rdc.choices import (
    HIGHEST_SIGMA,
    HIGHEST_TEMPERATURE,
    LOWEST_SIGMA,
    LOWEST_TEMPERATURE,
    MOST_DRAWS,
    Spacing,
    Weighting,
)
from rdc.config import ADDED, require

if TYPE_CHECKING:
    from rdc.levels import Levels

Estimator = Literal["losses", "posterior"]
Rule = Literal["momentum", "adam"]


@dataclass(frozen=True)
class ClassifierConfig:
    """The likelihood integral of the diffusion classifier; see `rdc.levels` and `rdc.likelihood`.

    `estimator`: "losses" sums the diffusion losses of every class (`DiffusionClassifier`);
        "posterior" asks the denoiser's own classifier at `sigma_min` alone, with `draws` noises,
        which for an exact denoiser is the integral from `sigma_min` to infinity
        (`AmortizedDiffusionClassifier`). It reads `sigma_min`, `draws`, `antithetic` and
        `temperature` only.
    `levels` noise levels in [`sigma_min`, `sigma_max`], each with `draws` noises.
        More levels cost and help more than as many draws: they are a lattice in sigma.
    `antithetic`: draws come in pairs of opposite sign, whose errors partly cancel; `draws` is even.
    `sigma_data` is EDM's data constant in the weights "edm" and "published".
    `temperature` divides the losses: logits = -loss / temperature. With the "elbo" weighting and
    temperature 1 they are log-likelihoods in nats; a temperature calibrates the posterior.
    """

    levels: int = 8
    sigma_min: float = 0.5
    sigma_max: float = 3.0
    draws: int = 1
    spacing: Spacing = "log"
    weighting: Weighting = "elbo"
    sigma_data: float = 0.5
    temperature: float = 1.0
    estimator: Estimator = field(default="losses", metadata=ADDED)
    antithetic: bool = field(default=False, metadata=ADDED)

    def __post_init__(self) -> None:
        require(
            self,
            levels=(1 <= self.levels <= MOST_DRAWS, f"1 to {MOST_DRAWS}"),
            sigma_min=(
                LOWEST_SIGMA <= self.sigma_min < self.sigma_max,
                f"at least {LOWEST_SIGMA} and less than sigma_max",
            ),
            sigma_max=(self.sigma_max <= HIGHEST_SIGMA, f"at most {HIGHEST_SIGMA:g}"),
            draws=(
                self.draws >= 1 and self.levels * self.draws <= MOST_DRAWS,
                f"at least 1, and levels x draws at most {MOST_DRAWS}",
            ),
            antithetic=(not self.antithetic or self.draws % 2 == 0, "False where draws is odd"),
            temperature=(
                LOWEST_TEMPERATURE <= self.temperature <= HIGHEST_TEMPERATURE,
                f"from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}",
            ),
            sigma_data=(1e-3 <= self.sigma_data <= 1e3, "from 0.001 to 1000"),
        )

    def build_levels(self) -> "Levels":
        from rdc.levels import Levels  # imports torch

        return Levels.build(
            count=self.levels, low=self.sigma_min, high=self.sigma_max, spacing=self.spacing,
            weighting=self.weighting, draws=self.draws, sigma_data=self.sigma_data,
        )  # fmt: skip

    @classmethod
    def released(cls, levels: int = 125) -> "ClassifierConfig":
        """The authors' released grid and weighting (they average over pixels; we sum)."""
        return cls(
            levels=levels, sigma_min=1e-4, sigma_max=3.0, spacing="uniform", weighting="published"
        )


@dataclass(frozen=True)
class MaximizationConfig:
    """Settings of likelihood maximization; `budget` and `step_size` are on [0, 1].

    `rule`: "momentum" is the paper's algorithm 1, which clips every step to the budget and to
        [0, 1]; "adam" is the authors' released code, which clips once, after the last step.
    `steps` gradient steps, each with `draws` noises, sigma uniform in [`sigma_min`, `sigma_max`].
    `budget`: largest change of a pixel. `step_size`: change of a pixel whose gradient is average.
    """

    rule: Rule = "momentum"
    steps: int = 5
    budget: float = 8 / 255
    step_size: float = 2 / 255
    momentum: float = 1.0
    sigma_min: float = 0.4
    sigma_max: float = 0.6
    draws: int = 1

    def __post_init__(self) -> None:
        require(
            self,
            steps=(0 <= self.steps <= MOST_DRAWS, f"0 to {MOST_DRAWS}"),
            budget=(0 < self.budget <= 1, "in (0, 1], on the scale of [0, 1] images"),
            step_size=(0 < self.step_size <= 1, "in (0, 1], on the scale of [0, 1] images"),
            momentum=(0 <= self.momentum <= 10, "from 0 to 10"),
            sigma_min=(
                LOWEST_SIGMA <= self.sigma_min <= self.sigma_max,
                f"at least {LOWEST_SIGMA} and at most sigma_max",
            ),
            sigma_max=(self.sigma_max <= HIGHEST_SIGMA, f"at most {HIGHEST_SIGMA:g}"),
            draws=(
                self.draws >= 1 and self.steps * self.draws <= MOST_DRAWS,
                f"at least 1, and steps x draws at most {MOST_DRAWS}",
            ),
        )

    @classmethod
    def released(cls) -> "MaximizationConfig":
        """The authors' released code: Adam at 0.1 on [-1, 1], and a budget of the whole range."""
        return cls(rule="adam", steps=5, budget=1.0, step_size=0.05)


@dataclass(frozen=True)
class RDCConfig:
    """Settings that turn a denoiser into RDC; stored beside the weights as `rdc.json`."""

    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    maximization: MaximizationConfig = field(default_factory=MaximizationConfig)
