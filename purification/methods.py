"""Published defenses by name: `build("diffpure", denoiser, preset="cifar10-linf")`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Literal

from torch import Tensor, nn

from purification.config import READ_BY, PurifierConfig
from purification.guidance import AGDM, GDMP, ClassifierGuidance, ContrastiveGuidance, Guidance
from purification.presets import Method, Preset, find
from purification.purifier import DiffusionPurifier, GradientMode
from rdc.choices import NoiseMode
from rdc.denoiser import DenoiserLike

BATCH = 64
"""images per batch in the contrastive scripts, whose weight is shared among them"""

Argument = Literal["classifier", "auxiliary"]
PACKAGED: dict[Argument, str] = {"classifier": "digits-cnn", "auxiliary": "digits-trades"}
"""Image classifiers that an error names as examples."""


def build(
    method: Method,
    denoiser: DenoiserLike,
    *,
    preset: str,
    classifier: nn.Module | None = None,
    auxiliary: nn.Module | None = None,
    bank: Tensor | None = None,
    weight: float | None = None,
    noise: NoiseMode = "frozen",
    seed: int = 0,
    gradient: GradientMode = "exact",
    **overrides: Any,
) -> DiffusionPurifier:
    """The purifier of a published method with the settings `preset` (see `purification.presets`).

    `classifier`, images in [0, 1] to logits: "coup" takes the one that it protects, "contrastive" a
        frozen one for its features. `auxiliary`: AGDM's adversarially trained network. Methods do
        not look at what they do not need.
    `bank`: the classifier's logits (M, K) of training images on [-1, 1]. With it "contrastive"
        takes its negatives from there, each image alone; without it from the batch, as published.
    `weight`: of the guidance, in place of the preset's; DiffPure, which has none, refuses it.
    `overrides`: fields of `PurifierConfig`, such as steps=10, in place of the preset's. Another
        process drops what only the preset's reads (`variance` and `clip` of "ddpm").
    """
    found = find(method, preset)
    names = [field.name for field in fields(PurifierConfig)]
    if unknown := sorted(set(overrides) - set(names)):
        raise ValueError(f"overrides={unknown}: not fields of PurifierConfig; give some of {names}")
    config = replaced(found.config, overrides)
    if config.times <= (late := found.term.get("drift_min", 0)):
        raise ValueError(
            f"t_star={config.t_star}: preset={preset!r} guides after {late} steps of 1/1000, when "
            "all is over; give a larger t_star, or another preset"
        )
    terms = guidance(
        method, found, classifier=classifier, auxiliary=auxiliary, bank=bank, seed=seed
    )
    if weight is not None and not terms:
        raise ValueError(
            f"weight={weight}: {method} has no guidance that it could be the weight of; leave it "
            "out, or choose another method"
        )
    pairs = [(chosen if weight is None else weight, term) for chosen, term in terms]
    return DiffusionPurifier(
        denoiser, config, guidance=pairs, noise=noise, seed=seed, gradient=gradient
    )


def replaced(config: PurifierConfig, changes: Mapping[str, Any]) -> PurifierConfig:
    """The settings with `changes`; what a process alone reads stays with that process."""
    process = changes.get("process", config.process)
    kept = {name: value for name, value in asdict(config).items()
            if process in READ_BY.get(name, (process,))}  # fmt: skip
    return PurifierConfig(**{**kept, **changes})


def guidance(
    method: Method,
    preset: Preset,
    *,
    classifier: nn.Module | None,
    auxiliary: nn.Module | None,
    bank: Tensor | None,
    seed: int,
) -> Sequence[tuple[float, Guidance]]:
    """The method's term with its weight; nothing for DiffPure."""
    weight, term = preset.weight, preset.term
    if method == "gdmp":
        return [(weight, GDMP(**term))]
    if method == "agdm":
        return [(weight, AGDM(needed(auxiliary, "auxiliary", method), **term))]
    if method == "coup":
        return [(weight, ClassifierGuidance(needed(classifier, "classifier", method), **term))]
    if method == "contrastive":
        network = needed(classifier, "classifier", method)
        if bank is None:
            term = {"negatives": "batch", "seed": seed, **term}
            return [(weight, ContrastiveGuidance(network, **term))]
        return [(weight / BATCH, ContrastiveGuidance(network, bank=bank, **term))]
    return []


def needed(network: nn.Module | None, argument: Argument, method: Method) -> nn.Module:
    if network is None:
        raise ValueError(
            f"{argument}=None: {method} is guided by a network that maps images (B, C, H, W) in "
            "[0, 1] to logits (B, K); give one, such as the packaged image classifier "
            f"{PACKAGED[argument]!r}"
        )
    return network
