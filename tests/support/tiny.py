"""A small RDC whose weights are all random: no output is the zero that training starts from."""

from collections.abc import Iterable

import torch

from rdc import (
    ClassifierConfig,
    Denoiser,
    DenoiserConfig,
    MaximizationConfig,
    RDCConfig,
    RobustDiffusionClassifier,
    UNetConfig,
)

NETWORK = UNetConfig(
    image_size=8,
    channels=1,
    num_classes=3,
    width=8,
    width_multipliers=(1, 2),
    blocks_per_level=1,
    attention_resolutions=(4,),
    attention_head_width=8,
)


def tiny_denoiser(
    network: UNetConfig = NETWORK, *, classes: Iterable[str] = ("zero", "one", "two"), seed: int = 0
) -> Denoiser:
    """1x8x8 images of three classes; frozen, in evaluation mode."""
    config = DenoiserConfig(network, sigma_data=0.4, class_names=tuple(classes))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        denoiser = Denoiser(config).eval().requires_grad_(False)
    for weights in denoiser.parameters():
        weights.normal_(0, 0.2, generator=generator)
    return denoiser


def tiny_rdc(network: UNetConfig = NETWORK, *, seed: int = 0) -> RobustDiffusionClassifier:
    """RDC with settings that differ from the defaults, on `tiny_denoiser`."""
    config = RDCConfig(
        ClassifierConfig(levels=2, sigma_max=1.5, temperature=20.0),
        MaximizationConfig(steps=1, budget=4 / 255),
    )
    return RobustDiffusionClassifier(tiny_denoiser(network, seed=seed), config)
