"""Classifiers made for images with Gaussian noise, for randomized smoothing to certify."""

from dataclasses import replace

from torch import nn

from evaluation.defense_config import NoisedKind
from purification import OneShotDenoiser
from rdc import (
    AmortizedDiffusionClassifier,
    Defense,
    DiffusionClassifier,
    NoisedDenoiser,
    RobustDiffusionClassifier,
)
from rdc.choices import LOWEST_SIGMA
from rdc.classifier import build_classifier


def epndc(
    rdc: RobustDiffusionClassifier, *, sigma: float, seed: int = 0
) -> DiffusionClassifier | AmortizedDiffusionClassifier:
    """Exact posterior noised diffusion classifier (Chen et al., NeurIPS 2024).

    The diffusion classifier of `rdc` for the likelihood of the noisy image itself, log p_tau(x | y)
    with tau = 2 `sigma`: noise levels are counted from tau, and draws come in opposite pairs, half
    as many levels as `rdc` has. From tau / 4 up: below, a level adds hardly any noise to tau.

    Of an amortized classifier, whose denoiser has log p_tau(y | x), one pass and no noise.
    """
    config = rdc.config.classifier
    noised = NoisedDenoiser(rdc.denoiser, 2 * sigma)
    if config.estimator == "posterior":
        config = replace(config, draws=1, antithetic=False, sigma_min=LOWEST_SIGMA)
        return AmortizedDiffusionClassifier(noised, config, seed=seed)
    config = replace(
        config, levels=max(1, config.levels // 2), draws=2 * config.draws,
        antithetic=True, sigma_min=sigma / 2,
    )  # fmt: skip
    return DiffusionClassifier(noised, config, seed=seed)


def apndc(rdc: RobustDiffusionClassifier, *, sigma: float, seed: int = 0) -> Defense:
    """Approximated posterior noised diffusion classifier (Chen et al., NeurIPS 2024).

    One unconditional denoising pass, then the diffusion classifier of `rdc` on noise levels from
    tau = 2 `sigma` up: the form of the released certification script.
    """
    config = replace(rdc.config.classifier, sigma_min=2 * sigma)
    classifier = build_classifier(rdc.denoiser, config, seed=seed)
    return Defense(OneShotDenoiser(rdc.denoiser, sigma=sigma), classifier)


def build_noised(
    kind: NoisedKind,
    rdc: RobustDiffusionClassifier,
    classifier: nn.Module | None,
    *,
    sigma: float,
    seed: int = 0,
) -> nn.Module:
    """The classifier `kind` for images with noise `sigma` on the scale of [0, 1].

    "denoised" is denoised smoothing: one unconditional denoising pass, then `classifier`. The
    diffusion classifiers keep as many network rows per image, the weights, the temperature and the
    largest level of `rdc`; EPNDC of an amortized classifier has one row.

    Raises:
        ValueError: the noise reaches that largest level.
    """
    if 2 * sigma >= rdc.config.classifier.sigma_max:
        raise ValueError(
            f"sigma={sigma}: noise of {2 * sigma:g} on [-1, 1] is not below the classifier's "
            f"largest level, {rdc.config.classifier.sigma_max:g}; give a smaller one"
        )
    if kind == "epndc":
        return epndc(rdc, sigma=sigma, seed=seed)
    if kind == "apndc":
        return apndc(rdc, sigma=sigma, seed=seed)
    assert classifier is not None
    return Defense(OneShotDenoiser(rdc.denoiser, sigma=sigma), classifier)
