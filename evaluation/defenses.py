"""Defenses by name, for the programs that attack them."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluation.certification.classifiers import build_noised
from evaluation.certification.smoothed import SmoothedClassifier
from evaluation.defense_config import (
    GENERATIVE,
    METHODS,
    NOISED,
    PURIFIER,
    VOTING,
    DefenseConfig,
    is_factory,
)
from evaluation.factories import from_factory, source_file
from purification.methods import build as build_purifier
from rdc import Defense, Denoiser, ImageClassifier, RobustDiffusionClassifier
from rdc.data import Dataset, load
from rdc.hub.checkpoint import CONFIG, RDC_SETTINGS, locate
from rdc.hub.weights import sha256
from rdc.images import to_x
from rdc.runs.fingerprints import data_fingerprint, weights_hash

BANK = 500
"""Training images whose logits contrastive guidance has."""
ORDINARY = {
    "digits": ("digits-cnn", "digits-trades"),
    "cifar10-samples": ("cifar10-cnn", "cifar10-trades"),
}
"""Packaged image classifiers by data set."""


def build(config: DefenseConfig, *, data: str) -> nn.Module:
    """The defense with frozen noise: [0, 1] images to logits. `data` is what it was trained on."""
    base = build_base(config, data=data)
    if config.sigma is None:
        return base
    return SmoothedClassifier(
        base, sigma=config.sigma, samples=config.noisy_copies, noise="frozen", seed=config.seed
    )


def build_base(config: DefenseConfig, *, data: str) -> nn.Module:
    """The defense before smoothing; the kinds that need `sigma` are made for it."""
    if config.factory is not None:
        return from_factory(config.factory)
    if config.kind == "classifier":
        return classifier(config.classifier)
    if config.kind in ("diffusion", "rdc", "maximization", *NOISED):
        rdc = RobustDiffusionClassifier.from_pretrained(
            config.model, seed=config.seed, second_order="central_difference"
        )
        if config.kind == "diffusion":
            return rdc.classifier
        if config.kind == "rdc":
            return Defense(rdc.purifier, rdc.classifier, copies=config.copies)
        if config.kind == "maximization":
            return Defense(rdc.purifier, classifier(config.classifier), copies=config.copies)
        return noised(config, rdc)
    return purified(config, data)


def noised(config: DefenseConfig, rdc: RobustDiffusionClassifier) -> nn.Module:
    """A classifier for images with noise `sigma`."""
    if config.sigma is None:
        raise ValueError(
            f"--defense.kind {config.kind}: made for noisy images; give the smoothing noise with "
            "--defense.sigma"
        )
    network = None if config.kind in GENERATIVE else classifier(config.classifier)
    return build_noised(
        config.kind,  # type: ignore[arg-type]
        rdc,
        network,
        sigma=config.sigma,
        seed=config.seed,
    )


def purified(config: DefenseConfig, data: str) -> Defense:
    """A classifier behind a purifier of `purification.methods`."""
    network = classifier(config.classifier)
    changes = {name: getattr(config, name) for name in PURIFIER}
    purifier = build_purifier(
        config.kind,  # type: ignore[arg-type]
        Denoiser.from_pretrained(config.model),
        preset=config.preset,
        classifier=network,
        auxiliary=classifier(config.auxiliary) if config.kind == "agdm" else None,
        bank=training_logits(network, data) if config.kind == "contrastive" else None,
        seed=config.seed,
        **{name: value for name, value in changes.items() if value is not None},
    )
    return Defense(purifier, network, copies=config.copies)


def classifier(name: str) -> nn.Module:
    """An image classifier: packaged name, directory, hub id, or a factory."""
    return from_factory(name) if is_factory(name) else ImageClassifier.from_pretrained(name)


@torch.no_grad()
def training_logits(network: nn.Module, data: str) -> Tensor:
    """Logits of training images as contrastive guidance sees states: on [-1, 1]."""
    return network(to_x(bank(data).images))


def bank(data: str) -> Dataset:
    """The training images that contrastive guidance compares with."""
    return load(data, "train").subset(slice(BANK))


def networks(config: DefenseConfig) -> list[str]:
    """Names of the models whose weights a defense has."""
    if config.factory is not None:
        return [config.factory]
    found = [] if config.kind == "classifier" else [config.model]
    found += [] if config.kind in GENERATIVE else [config.classifier]
    return found + ([config.auxiliary] if config.kind == "agdm" else [])


def weights(names: list[str]) -> dict[str, str]:
    """Hashes of the weights of models, by name (see `rdc.runs.fingerprints.weights_hash`)."""
    return {name: weights_hash(from_factory(name) if is_factory(name) else name) for name in names}


def hashes(config: DefenseConfig, transfer: str | None, *, data: str) -> dict[str, str]:
    """Hashes of all files that a defense and a transfer model are made from, by description."""
    names = networks(config)
    if transfer:
        source = transfer_source(config, transfer)
        names += networks(source) if source else [transfer]
    found = {f"weights of {name}": value for name, value in weights(names).items()}
    for name in names:
        found |= {f"{file.name} of {name}": sha256(file) for file in sources(name)}
    if config.kind == "contrastive":
        found["training images"] = data_fingerprint(bank(data))
    return found


def sources(name: str) -> list[Path]:
    """The files beside the weights that define a model: its settings, or a factory's code."""
    if is_factory(name):
        return [source_file(name)]
    folder = locate(name, CONFIG).parent
    return [folder / file for file in (CONFIG, RDC_SETTINGS) if (folder / file).exists()]


def transfer_source(config: DefenseConfig, name: str) -> DefenseConfig | None:
    """The defense that a transfer model KIND or KIND:DENOISER names; None for a classifier.

    It has the networks of `config`, and its settings as far as the kind has them, but another seed.
    """
    kind, _, model = name.partition(":")
    if kind not in (*METHODS, *GENERATIVE, "maximization"):
        return None
    changes = {"model": model or config.model, "weight": None, "seed": config.seed + 1}
    changes |= {} if kind in METHODS else dict.fromkeys(PURIFIER)
    changes |= {} if kind in VOTING else {"copies": 1}
    return replace(config, kind=kind, **changes)  # type: ignore[arg-type]


def default_transfer_model(config: DefenseConfig, data: str) -> str | None:
    """A packaged image classifier of the data on which to make images for a transfer attack.

    Not the one that the defense has itself: attacks through that are no transfer. None where
    nothing is packaged.
    """
    own = networks(config)
    return next((name for name in ORDINARY.get(data, ()) if name not in own), None)
