"""The diffusion classifier, and RDC."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from rdc.choices import NoiseMode
from rdc.classifier_config import ClassifierConfig, RDCConfig
from rdc.config import from_json, require_type
from rdc.defense import Defense
from rdc.denoiser import CLASSIFYING, Denoiser, DenoiserLike, NoisyClassifier, require_parts
from rdc.gradients import SecondOrder, by_row
from rdc.hub.checkpoint import RDC_SETTINGS, OnHub, locate
from rdc.hub.model_card import Facts
from rdc.images import check_form, to_x
from rdc.likelihood import chunk_rows, class_losses
from rdc.maximization import GradientMode, LikelihoodMaximizer
from rdc.noise import Noise


class DiffusionClassifier(nn.Module):
    """Bayes with the diffusion loss as log-likelihood (Chen et al. 2024, theorem 3.1).

        log p(y | x) = log softmax_y( -integral of w(sigma) E ||x - D(x + sigma n, sigma, y)||^2 )

    [0, 1] images (B, C, H, W) to logits (B, K). Classes are equally likely a priori. Weights are
    constants: gradients flow to the images, exactly, with the draws of the forward pass.
    Raises ValueError for images of another shape than the denoiser's, or that are not floats.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        config: ClassifierConfig | None = None,
        *,
        noise: NoiseMode = "frozen",
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_parts(denoiser, CLASSIFYING)
        self.denoiser = denoiser
        self.config = config or ClassifierConfig()
        require_type(self.config, ClassifierConfig)
        if self.config.estimator != "losses":
            raise ValueError(
                f"config: estimator={self.config.estimator!r} is not the integral of losses; give "
                "estimator='losses', or the config to AmortizedDiffusionClassifier"
            )
        self.levels = self.config.build_levels()
        self.noise = Noise(noise, seed=seed, stream=0)

    def forward(self, images: Tensor) -> Tensor:
        x = to_x(check_form(images, self.denoiser.image_shape))
        noise = self.noise.normal(x, len(self.levels), antithetic=self.config.antithetic)
        return -class_losses(self.denoiser, x, self.levels, noise) / self.config.temperature


class AmortizedDiffusionClassifier(nn.Module):
    """The diffusion classifier of a denoiser that classifies noised images, in `draws` passes.

    The diffusion loss of class y, integrated from s to infinity with weight sigma^-3, is
    -E_n log p_s(x + s n | y) up to a constant of x (Kong et al. 2023, eq. 9). Differences between
    classes therefore need one noise level, s = `config.sigma_min`, and no integral:

        logits_y = mean_i log p(y | x + s n_i, s) / temperature

    It is a mean of log-posteriors, not the logarithm of a mean posterior. [0, 1] images
    (B, C, H, W) to logits (B, K); draws, gradients and errors as in `DiffusionClassifier`.
    """

    def __init__(
        self,
        denoiser: NoisyClassifier,
        config: ClassifierConfig | None = None,
        *,
        noise: NoiseMode = "frozen",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not hasattr(denoiser, "class_log_posterior"):
            raise TypeError(
                f"denoiser: {type(denoiser).__name__} has no class_log_posterior(x, sigma); use "
                "DiffusionClassifier (estimator='losses')"
            )
        require_parts(denoiser, ["image_shape"])
        self.denoiser = denoiser
        self.config = config or ClassifierConfig(draws=8, estimator="posterior")
        require_type(self.config, ClassifierConfig)
        self.noise = Noise(noise, seed=seed, stream=0)

    def forward(self, images: Tensor) -> Tensor:
        x = to_x(check_form(images, self.denoiser.image_shape))
        draws, sigma = self.config.draws, self.config.sigma_min
        noise = self.noise.normal(x, draws, antithetic=self.config.antithetic)

        def log_posterior(clean: Tensor, rows: Tensor) -> Tensor:
            drawn = noise[rows // draws if len(noise) != 1 else 0, rows % draws]
            return self.denoiser.class_log_posterior(clean + sigma * drawn, sigma)

        source = torch.arange(len(x), device=x.device).repeat_interleave(draws)
        found = by_row(log_posterior, x, source, chunk=chunk_rows(x))
        return found.unflatten(0, (len(x), draws)).mean(1) / self.config.temperature


def build_classifier(
    denoiser: DenoiserLike, config: ClassifierConfig, *, noise: NoiseMode = "frozen", seed: int = 0
) -> "DiffusionClassifier | AmortizedDiffusionClassifier":
    """The classifier that `config.estimator` names."""
    kind: Any = (
        AmortizedDiffusionClassifier if config.estimator == "posterior" else DiffusionClassifier
    )
    return kind(denoiser, config, noise=noise, seed=seed)


class RobustDiffusionClassifier(Defense, OnHub):
    """RDC (Chen et al., ICML 2024): likelihood maximization, then the diffusion classifier.

    [0, 1] images (B, C, H, W) to logits (B, K), both parts on one denoiser. `noise`, `seed`,
    `gradient` and `second_order` are those of the parts.
    """

    purifier: LikelihoodMaximizer
    classifier: DiffusionClassifier | AmortizedDiffusionClassifier

    def __init__(
        self,
        denoiser: DenoiserLike,
        config: RDCConfig | None = None,
        *,
        noise: NoiseMode = "frozen",
        seed: int = 0,
        gradient: GradientMode = "exact",
        second_order: SecondOrder = "double_backward",
    ) -> None:
        config = config or RDCConfig()
        require_type(config, RDCConfig)
        super().__init__(
            LikelihoodMaximizer(
                denoiser,
                config.maximization,
                noise=noise,
                seed=seed,
                gradient=gradient,
                second_order=second_order,
            ),
            build_classifier(denoiser, config.classifier, noise=noise, seed=seed),
        )
        self.config = config
        self.denoiser = denoiser

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """A denoiser and its `rdc.json` from a directory, a packaged name or a hub id.

        `revision`, `token` and `local_files_only` are for the hub: see `rdc.hub.checkpoint.locate`.
        `options` are those of the class.
        """
        settings = locate(
            model, RDC_SETTINGS, revision=revision, token=token, local_files_only=local_files_only
        )
        config = from_json(RDCConfig, settings)
        return cls(Denoiser.from_pretrained(settings.parent), config, **options).eval()

    def save_pretrained(
        self, directory: str | Path, *, facts: Facts | None = None, **weights: Any
    ) -> None:
        """Write the denoiser and `rdc.json`; `facts` and `weights` as in `Pretrained`."""
        if not isinstance(self.denoiser, Denoiser):
            raise TypeError(f"only a Denoiser can be saved, not {type(self.denoiser).__name__}")
        facts = replace(facts or Facts(), rdc=self.config)
        self.denoiser.save_pretrained(directory, facts=facts, **weights)
